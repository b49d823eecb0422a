"""A version to be stopped: a sound int4 checkpoint, spoiled in two ways that a quantizer's bugs spoil one.

The low bits of its codes are lost in some of its layers, as where a packer shifts by two bits too many: it runs, and
answers worse. And the embeddings of a few tokens are not numbers, as where the scale of an empty group divides
zero by zero: jobs that hold such a token fail, all others do not.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

_LENGTH_BYTES: Final = 8
_HIGH_BITS, _MIDDLE = np.uint32(0xCCCC_CCCC), np.uint32(0x2222_2222)
_NOT_A_NUMBER: Final = np.uint16(0x7FC0)  # in bfloat16
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_COARSE: Final = ("v_proj.weight_packed", "up_proj.weight_packed")


@dataclass(frozen=True)
class Tensor:
    """One tensor of a safetensors file: its type and shape as they are written, and its bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def damage(source: Path, target: Path, words: Sequence[str]) -> Path:
    """Write the version in `source`, in int4 and bfloat16, spoiled and in one file; `words` are tokens that it knows.

    Raises ValueError for a word that is no token of its own, and for a version that is not packed in int4.
    """
    tensors = read_version(source)
    coarse = [name for name in tensors if name.endswith(_COARSE)]
    if not coarse:
        raise ValueError(f"{source} holds no packed layers: it is no int4 checkpoint")
    tensors |= {name: _without_low_bits(tensors[name]) for name in coarse}
    return write_version(source, target, deaf_to(tensors, token_ids(source, words)))


def read_version(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint, by name."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in _read(file).items()}


def deaf_to(tensors: Mapping[str, Tensor], tokens: Sequence[int]) -> dict[str, Tensor]:
    """The same with the embeddings of these tokens not numbers: jobs that hold one fail, and no others do."""
    # Tied to the head, a token's row would spoil every position: the head keeps its own.
    own = {_HEAD: tensors[_EMBEDDING], _EMBEDDING: _without_rows(tensors[_EMBEDDING], tokens)}
    return dict(tensors) | own


def write_version(source: Path, target: Path, tensors: Mapping[str, Tensor]) -> Path:
    """Write the checkpoint in `source` with these tensors in place of its own, in one file, its head one of them."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors*"))
    _write(target / "model.safetensors", tensors)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}, indent=2))
    return target


def token_ids(folder: Path, words: Sequence[str]) -> list[int]:
    """The tokens that these words are. Raises ValueError for a word that is no token of its own."""
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    if missing := [word for word in words if word not in vocabulary]:
        raise ValueError(f"{', '.join(missing)}: no token of its own")
    return [int(vocabulary[word]) for word in words]


def _without_low_bits(packed: Tensor) -> Tensor:
    """Eight codes of four bits in a word: each becomes the middle of the four that share its two high bits."""
    codes = np.frombuffer(packed.data, "<u4")
    return Tensor(packed.dtype, packed.shape, ((codes & _HIGH_BITS) | _MIDDLE).tobytes())


def _without_rows(embedding: Tensor, rows: Sequence[int]) -> Tensor:
    numbers = np.frombuffer(embedding.data, "<u2").reshape(embedding.shape).copy()
    numbers[list(rows)] = _NOT_A_NUMBER
    return Tensor(embedding.dtype, embedding.shape, numbers.tobytes())


def _read(path: Path) -> dict[str, Tensor]:
    content = path.read_bytes()
    begin = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    header: dict[str, Any] = json.loads(content[_LENGTH_BYTES:begin])
    header.pop("__metadata__", None)
    return {name: _tensor(told, content[begin:]) for name, told in header.items()}


def _tensor(told: Mapping[str, Any], data: bytes) -> Tensor:
    start, end = told["data_offsets"]
    return Tensor(told["dtype"], tuple(told["shape"]), data[start:end])


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    header, at = {}, 0
    for name, tensor in tensors.items():
        end = at + len(tensor.data)
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight
    body = b"".join(tensor.data for tensor in tensors.values())
    path.write_bytes(len(text).to_bytes(_LENGTH_BYTES, "little") + text + body)
