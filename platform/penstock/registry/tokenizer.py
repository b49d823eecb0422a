"""A model's tokenizer and chat template, without torch and without `transformers`.

Prompts are encoded as `transformers` encodes them: a plain prompt gets the special tokens that `tokenizer.json`'s
post-processor adds; a chat gets none beyond those that its template writes.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

from tokenizers import AddedToken, Tokenizer

from penstock.errors import ModelFolderInvalid, ValidationFailed
from penstock.registry.chat_template import ChatTemplate, find_chat_template
from penstock.registry.detokenizer import IncrementalDetokenizer, Step, steps_of
from penstock.registry.files import file_in, read_json_if_there
from penstock.tools.forms import CallForm
from penstock.tools.grammar import call_grammar

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

    def encode_input(self, job_input: Mapping[str, Any], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """The token ids of `{"prompt": ...}`, `{"messages": [...]}` or `{"token_ids": [...]}`, which stay as they are.

        A continuation is part of the text, and so is tokenized with it; `continuation_token_ids` follow as they are.

        Raises `ValidationFailed` on `input.messages` when the model has no chat template, or its template refuses them,
        and on `params.tools` when tools cannot be used with it.
        """
        given = job_input.get("continuation_token_ids", ())
        if "token_ids" in job_input:
            return [*job_input["token_ids"], *given]
        continuation = job_input.get("continuation", "")
        if "messages" in job_input:
            text = self.render_chat(job_input["messages"], tools) + continuation
            return [*self._tokenizer.encode(text, add_special_tokens=False).ids, *given]
        return [*self._tokenizer.encode(job_input["prompt"] + continuation).ids, *given]

    def scored_from(self, job_input: Mapping[str, Any], ids: Sequence[int]) -> int:
        """Which is the first token of an input's continuation, among the `ids` that `encode_input` makes of both.

        It is the first that the prompt alone would not have: a token may span the two. Without a continuation it is
        the second one, the first that has another before it.
        """
        alone = {name: value for name, value in job_input.items() if not name.startswith("continuation")}
        if len(alone) == len(job_input):
            return 1
        before = self.encode_input(alone)
        shared = (place for place, (one, other) in enumerate(zip(before, ids, strict=False)) if one != other)
        return max(1, min(next(shared, len(before)), len(ids) - 1))

    @property
    def size(self) -> int:
        """How many tokens it knows."""
        return self._tokenizer.get_vocab_size()

    def render_chat(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> str:
        """The text that the chat template makes of the messages, up to where the answer begins."""
        if self._chat_template is None:
            raise ValidationFailed("this model has no chat template; give input.prompt instead", field="input.messages")
        if tools:
            self.call_form  # noqa: B018 - raises where the template would drop them
        elif any("tool_calls" in message or "tool_call_id" in message for message in messages):
            self._form_for("input.messages")
        return self._chat_template.render(messages, tools)

    @property
    def call_form(self) -> CallForm:
        """How the model writes calls. Raises `ValidationFailed` on `params.tools` where it cannot use tools."""
        return self._form_for("params.tools")

    def call_grammar(self, params: Mapping[str, Any]) -> str:
        """The grammar of an answer with the tools of a job's stored parameters. Raises `ValidationFailed`."""
        form = self.call_form
        ids = {marker: self.token_id(marker) for marker in form.markers}
        return call_grammar(
            form,
            {marker: token_id for marker, token_id in ids.items() if token_id is not None},
            params["tools"],
            params["tool_choice"],
            parallel=params["parallel_tool_calls"],
        )

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of the whole sequence, without its special tokens."""
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=True)

    def spelled(self, token_id: int) -> str:
        """What one token writes; of one that writes nothing by itself, how the vocabulary spells it."""
        return self.decode([token_id]) or self._tokenizer.id_to_token(token_id) or ""

    def token_id(self, token: str) -> int | None:
        """The id of a token as the vocabulary writes it, or None."""
        return self._tokenizer.token_to_id(token)

    def detokenizer(self, prompt_ids: Sequence[int] = (), *, shown: Collection[str] = ()) -> IncrementalDetokenizer:
        """Turns one output, which follows the prompt, into text as its tokens come; of special tokens those `shown`."""
        hidden = self._special_ids - {self._tokenizer.token_to_id(token) for token in shown}
        return IncrementalDetokenizer(self._tokenizer, hidden, self._fresh_steps(), prompt_ids)

    def _form_for(self, field: str) -> CallForm:
        form = self._chat_template.call_form if self._chat_template is not None else "it has none"
        if isinstance(form, str):
            raise ValidationFailed(
                f"{field}: tools cannot be used with this model's chat template: {form}", field=field
            )
        return form


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
