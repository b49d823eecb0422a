"""The tokenizers that a web process has at hand, verified: they count prompts and judge what parameters name."""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.errors import ModelFolderInvalid, ServiceUnavailable
from penstock.registry.files import hash_files
from penstock.registry.models import Deployment
from penstock.registry.tokenizer import TOKENIZER_FILES, ModelTokenizer
from penstock.registry.vocabulary import VOCABULARY_FILES, Vocabulary


@dataclass(frozen=True, slots=True)
class _Loaded:
    tokenizer: ModelTokenizer
    vocabulary: Vocabulary


class TokenizerCache:
    """The tokenizers of the most recently used deployments; judges prompts and tokens for the web process."""

    def __init__(self, max_models: int = 8) -> None:
        self._max_models = max_models
        self._loaded: OrderedDict[str, _Loaded] = OrderedDict()
        self._lock = threading.Lock()
        # A large vocabulary takes a second and 100 MB to load: threads that want the same one wait for the first.
        self._loading = threading.Lock()

    def count(
        self, deployment: Deployment, job_input: Mapping[str, Any], tools: Sequence[Mapping[str, Any]] = ()
    ) -> int:
        """Tokens of the whole prompt.

        Raises `ServiceUnavailable` when the model's folder cannot be reached from this process, `ModelFolderInvalid`
        when the tokenizer's files are not those that were registered.
        """
        return len(self.get(deployment).encode_input(job_input, tools))

    def vocabulary(self, deployment: Deployment) -> Vocabulary:
        """The tokens that a job's parameters may name, and the structure that they can be held to. Errors as above."""
        return self._get(deployment).vocabulary

    def get(self, deployment: Deployment) -> ModelTokenizer:
        """The deployment's tokenizer, loaded at first use. Errors as in `count`."""
        return self._get(deployment).tokenizer

    def _get(self, deployment: Deployment) -> _Loaded:
        known = self._find(deployment.id)
        if known is not None:
            return known
        with self._loading:
            return self._find(deployment.id) or self._keep(deployment.id, _load(deployment))

    def _find(self, deployment_id: str) -> _Loaded | None:
        with self._lock:
            known = self._loaded.get(deployment_id)
            if known is not None:
                self._loaded.move_to_end(deployment_id)
            return known

    def _keep(self, deployment_id: str, loaded: _Loaded) -> _Loaded:
        with self._lock:
            self._loaded[deployment_id] = loaded
            while len(self._loaded) > self._max_models:
                self._loaded.popitem(last=False)
        return loaded


def _load(deployment: Deployment) -> _Loaded:
    folder = Path(deployment.source)
    if not (folder / "tokenizer.json").is_file():
        raise ServiceUnavailable(
            f"the folder of {deployment.model_name} version {deployment.model_version}, {folder}, cannot be reached "
            "from this process; mount the model storage where it was registered"
        )
    names = (*TOKENIZER_FILES, *VOCABULARY_FILES)
    hashes = hash_files(folder, [folder / name for name in names if (folder / name).exists()])
    wanted = {name: digest for name, digest in deployment.manifest.items() if name in names}
    for name in sorted(hashes.keys() | wanted.keys()):
        if hashes.get(name) != wanted.get(name):
            raise ModelFolderInvalid(
                f"{folder / name} is not the file that was registered; register the folder again", file=name
            )
    tokenizer = ModelTokenizer.from_folder(folder)
    return _Loaded(tokenizer, Vocabulary.from_folder(folder, tokenizer.size))
