"""A model's tokenizer and chat template, without torch and without `transformers`.

Prompts are encoded as `transformers` encodes them: a plain prompt gets the special tokens that `tokenizer.json`'s
post-processor adds; a chat gets none beyond those that its template writes.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

from tokenizers import AddedToken, Tokenizer

from penstock.errors import ModelFolderInvalid, ServiceUnavailable, ValidationFailed
from penstock.registry.chat_template import ChatTemplate, find_chat_template
from penstock.registry.detokenizer import IncrementalDetokenizer, Step, steps_of
from penstock.registry.files import file_in, hash_files, read_json_if_there
from penstock.registry.models import Deployment

TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
"""Whatever decides how text becomes tokens; all but the first may be absent."""

_STANDARD_TOKENS: Final = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))


class ModelTokenizer:
    """Text to token ids and back. Safe to use from several threads."""

    def __init__(
        self, tokenizer: Tokenizer, chat_template: ChatTemplate | None, fresh_steps: Callable[[], list[Step]]
    ) -> None:
        self._tokenizer, self._chat_template, self._fresh_steps = tokenizer, chat_template, fresh_steps
        added = tokenizer.get_added_tokens_decoder()
        self._special_ids = frozenset(token_id for token_id, token in added.items() if token.special)

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Read tokenizer, special tokens and chat template. Raises `ModelFolderInvalid` naming the file at fault."""
        path = file_in(folder, "tokenizer.json")
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ModelFolderInvalid(f"{path} is not a tokenizer: {error}", file=path.name) from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        config = _configuration(folder)
        special_tokens = _named_tokens(config)
        _add_missing(tokenizer, config, special_tokens)
        source = find_chat_template(folder)
        template = ChatTemplate(source, special_tokens) if source is not None else None
        return cls(tokenizer, template, steps_of(tokenizer))

    @property
    def has_chat_template(self) -> bool:
        """Whether chats can be encoded."""
        return self._chat_template is not None

    def encode_input(self, job_input: Mapping[str, Any]) -> list[int]:
        """The token ids of `{"prompt": ...}` or `{"messages": [...]}`.

        Raises `ValidationFailed` on `input.messages` when the model has no chat template, or its template refuses them.
        """
        if "messages" in job_input:
            return self._encode_chat(job_input["messages"])
        return list(self._tokenizer.encode(job_input["prompt"]).ids)

    def render_chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The text that the chat template makes of the messages, up to where the answer begins."""
        if self._chat_template is None:
            raise ValidationFailed("this model has no chat template; give input.prompt instead", field="input.messages")
        return self._chat_template.render(messages)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of the whole sequence, without its special tokens."""
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=True)

    def token_id(self, token: str) -> int | None:
        """The id of a token as the vocabulary writes it, or None."""
        return self._tokenizer.token_to_id(token)

    def detokenizer(self, prompt_ids: Sequence[int] = ()) -> IncrementalDetokenizer:
        """Turns one output, which follows the prompt, into text as its tokens come."""
        return IncrementalDetokenizer(self._tokenizer, self._special_ids, self._fresh_steps(), prompt_ids)

    def _encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        return list(self._tokenizer.encode(self.render_chat(messages), add_special_tokens=False).ids)


class TokenizerCache:
    """The tokenizers of the most recently used deployments; counts prompts for the web process."""

    def __init__(self, max_models: int = 8) -> None:
        self._max_models = max_models
        self._loaded: OrderedDict[str, ModelTokenizer] = OrderedDict()
        self._lock = threading.Lock()
        # A large vocabulary takes a second and 100 MB to load: threads that want the same one wait for the first.
        self._loading = threading.Lock()

    def count(self, deployment: Deployment, job_input: Mapping[str, Any]) -> int:
        """Tokens of the whole prompt.

        Raises `ServiceUnavailable` when the model's folder cannot be reached from this process, `ModelFolderInvalid`
        when the tokenizer's files are not those that were registered.
        """
        return len(self.get(deployment).encode_input(job_input))

    def get(self, deployment: Deployment) -> ModelTokenizer:
        """The deployment's tokenizer, loaded at first use. Errors as in `count`."""
        known = self._find(deployment.id)
        if known is not None:
            return known
        with self._loading:
            return self._find(deployment.id) or self._keep(deployment.id, _load(deployment))

    def _find(self, deployment_id: str) -> ModelTokenizer | None:
        with self._lock:
            known = self._loaded.get(deployment_id)
            if known is not None:
                self._loaded.move_to_end(deployment_id)
            return known

    def _keep(self, deployment_id: str, tokenizer: ModelTokenizer) -> ModelTokenizer:
        with self._lock:
            self._loaded[deployment_id] = tokenizer
            while len(self._loaded) > self._max_models:
                self._loaded.popitem(last=False)
        return tokenizer


def _load(deployment: Deployment) -> ModelTokenizer:
    folder = Path(deployment.source)
    if not (folder / "tokenizer.json").is_file():
        raise ServiceUnavailable(
            f"the folder of {deployment.model_name} version {deployment.model_version}, {folder}, cannot be reached "
            "from this process; mount the model storage where it was registered"
        )
    present = [folder / name for name in TOKENIZER_FILES if (folder / name).exists()]
    hashes = hash_files(folder, present)
    wanted = {name: digest for name, digest in deployment.manifest.items() if name in TOKENIZER_FILES}
    for name in sorted(hashes.keys() | wanted.keys()):
        if hashes.get(name) != wanted.get(name):
            raise ModelFolderInvalid(
                f"{folder / name} is not the file that was registered; register the folder again", file=name
            )
    return ModelTokenizer.from_folder(folder)


def _configuration(folder: Path) -> dict[str, Any]:
    """`tokenizer_config.json`; where it lists no added tokens, also the older `special_tokens_map.json`."""
    config = read_json_if_there(folder, "tokenizer_config.json")
    if "added_tokens_decoder" in config:
        return config
    return config | read_json_if_there(folder, "special_tokens_map.json")


def _named_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """`bos_token`, `eos_token` and the like, as the chat template sees them, in transformers' order of adding them."""
    keys = [*_STANDARD_TOKENS, *(key for key in config if key.endswith("_token"))]
    named = {key: _content(config.get(key)) for key in keys}
    return {key: token for key, token in named.items() if token is not None}


def _add_missing(tokenizer: Tokenizer, config: Mapping[str, Any], named: Mapping[str, str]) -> None:
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    listed = extra.values() if isinstance(extra, dict) else extra
    wanted = dict.fromkeys([*named.values(), *filter(None, map(_content, listed))])
    missing = [AddedToken(token, special=True, normalized=False) for token in wanted if token not in known]
    if missing:
        tokenizer.add_special_tokens(missing)


def _content(token: Any) -> str | None:
    """A token is written as text, or as an object with its `content`."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None
