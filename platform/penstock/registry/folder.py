"""A Hugging Face model folder, read without torch: what it holds, and whether it is whole and as registered."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from penstock.errors import ModelFolderInvalid
from penstock.registry.chat_template import find_chat_template
from penstock.registry.files import Progress, file_in, hash_files, list_files, read_json, require_folder
from penstock.registry.safetensors_header import read_header

INDEX_FILE: Final = "model.safetensors.index.json"
_WEIGHTS_FILE: Final = "model.safetensors"
_DTYPE_NAMES: Final = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# Files that a worker may read: one of these that appears after the registration changes what the model does.
_READ_BY_NAME: Final = frozenset(
    {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        INDEX_FILE,
    }
)


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """What a folder holds. Lengths are tokens, sizes bytes; `manifest` maps each file's name to its SHA-256."""

    path: Path
    architecture: str
    context_length: int
    dtype: str
    recipe: dict[str, Any]
    tokenizer_sha256: str
    chat_template_sha256: str | None
    manifest: dict[str, str]
    total_bytes: int

    @property
    def digest(self) -> str:
        """The manifest's own SHA-256: equal for folders with equal files."""
        return manifest_digest(self.manifest)


def manifest_digest(manifest: Mapping[str, str]) -> str:
    """SHA-256 of the manifest, whatever its order."""
    return hashlib.sha256(json.dumps(dict(manifest), sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def describe(path: Path, progress: Progress | None = None) -> ModelFolder:
    """Check that the folder is a whole model, and hash it.

    `progress` is told of bytes hashed. Raises `ModelFolderInvalid` naming the file and what would be right.
    """
    folder = require_folder(path)
    config = read_json(folder, "config.json")
    file_in(folder, "tokenizer.json")
    dtypes = _check_weights(folder)
    dtype = _dtype(config, dtypes)
    template = find_chat_template(folder)
    files = list_files(folder)
    manifest = hash_files(folder, files, progress)
    return ModelFolder(
        path=folder,
        architecture=_architecture(folder, config),
        context_length=_context_length(folder, config),
        dtype=dtype,
        recipe=_recipe(config, dtype),
        tokenizer_sha256=manifest["tokenizer.json"],
        chat_template_sha256=hashlib.sha256(template.encode()).hexdigest() if template is not None else None,
        manifest=manifest,
        total_bytes=sum(file.stat().st_size for file in files),
    )


def verify(path: Path, manifest: Mapping[str, str], progress: Progress | None = None) -> None:
    """Hash the folder again. Raises `ModelFolderInvalid` naming the first file that is missing, altered or added."""
    folder = require_folder(path)
    wanted = [file_in(folder, name) for name in sorted(manifest)]
    for file in list_files(folder):
        name = file.relative_to(folder).as_posix()
        if name not in manifest and (name in _READ_BY_NAME or name.endswith(".safetensors")):
            raise ModelFolderInvalid(
                f"{file} was added after the registration; remove it or register the folder as a new version", file=name
            )
    for name, digest in hash_files(folder, wanted, progress).items():
        if digest != manifest[name]:
            raise ModelFolderInvalid(
                f"{folder / name} was altered: its SHA-256 is {digest}, registered is {manifest[name]}; "
                "put the registered file back or register the folder as a new version",
                file=name,
            )


def _check_weights(folder: Path) -> Counter[str]:
    """How many tensors there are of each safetensors dtype, after every weight file was seen to be whole."""
    dtypes: Counter[str] = Counter()
    if not (folder / INDEX_FILE).exists():
        tensors = read_header(file_in(folder, _WEIGHTS_FILE))
        return Counter(tensor["dtype"] for tensor in tensors.values())
    for shard, names in _shards(folder).items():
        tensors = read_header(file_in(folder, shard))
        if absent := sorted(names - tensors.keys()):
            raise ModelFolderInvalid(
                f"{folder / shard} lacks the tensor {absent[0]}, which {INDEX_FILE} places there", file=shard
            )
        dtypes.update(tensor["dtype"] for tensor in tensors.values())
    return dtypes


def _shards(folder: Path) -> dict[str, set[str]]:
    places = read_json(folder, INDEX_FILE).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ModelFolderInvalid(f"{folder / INDEX_FILE} has no weight_map of tensor names to files", file=INDEX_FILE)
    shards: dict[str, set[str]] = {}
    for tensor, file in places.items():
        shards.setdefault(str(file), set()).add(tensor)
    return shards


def _architecture(folder: Path, config: dict[str, Any]) -> str:
    named = config.get("architectures")
    if not isinstance(named, list) or not named or not isinstance(named[0], str):
        raise ModelFolderInvalid(
            f'{folder / "config.json"} must name the model\'s class, as in "architectures": ["LlamaForCausalLM"]',
            file="config.json",
        )
    return named[0]


def _context_length(folder: Path, config: dict[str, Any]) -> int:
    length = _text_config(config).get("max_position_embeddings")
    if not isinstance(length, int) or isinstance(length, bool) or length < 1:
        raise ModelFolderInvalid(
            f"{folder / 'config.json'}: max_position_embeddings must be the context's length in tokens, not {length!r}",
            file="config.json",
        )
    return length


def _dtype(config: dict[str, Any], dtypes: Counter[str]) -> str:
    """As the configuration says, or else the floating type that most tensors have."""
    text = _text_config(config)
    said = text.get("dtype") or text.get("torch_dtype") or config.get("dtype") or config.get("torch_dtype")
    if isinstance(said, str):
        return said.removeprefix("torch.")
    floating = [(count, name) for name, count in dtypes.items() if name in _DTYPE_NAMES]
    return _DTYPE_NAMES[max(floating)[1]] if floating else "float32"


def _recipe(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """How the weights were quantized, as the configuration says it."""
    quantization = config.get("quantization_config") or _text_config(config).get("quantization_config")
    if not isinstance(quantization, dict):
        return {"scheme": "none", "dtype": dtype}
    return {"scheme": str(quantization.get("quant_method", "unknown")), "dtype": dtype, "config": quantization}


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    """Where a model of several kinds of input keeps its language model's settings."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config
