"""The model that is compressed: a Hugging Face folder, read block by block."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from penstock_compress.errors import SourceUnusable
from penstock_compress.recipe import KEPT

INDEX: Final = "model.safetensors.index.json"
SINGLE: Final = "model.safetensors"
_IN_BLOCK: Final = re.compile(r"^(?P<stem>.+\.layers)\.(?P<index>\d+)\.(?P<name>.+)$")


class Source:
    """A folder with `config.json` and safetensors. Raises SourceUnusable where it is not one, or compressed already."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = _read_config(folder / "config.json")
        self._files = _files(folder)
        self.names = tuple(self._files)
        blocks = [match for match in map(_IN_BLOCK.match, self.names) if match]
        stems = {match["stem"] for match in blocks}
        if len(stems) != 1:
            raise SourceUnusable(folder, f"has {len(stems)} stacks of blocks named '….layers.0.…', and should have one")
        self.stem = stems.pop()
        self.blocks = 1 + max(int(match["index"]) for match in blocks)

    @property
    def shards(self) -> list[Path]:
        return sorted({self.folder / file for file in self._files.values()})

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.shards)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the files of weights and the configuration, hexadecimal."""
        digest = hashlib.sha256()
        for path in (self.folder / "config.json", *self.shards):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    @cached_property
    def dtype(self) -> torch.dtype:
        """The dtype of most of the weights' files: that of the first block's first matrix."""
        name = next(name for name in self.block_names(0) if name.endswith(".weight"))
        return next(iter(self.read([name]).values())).dtype

    def prefix(self, block: int) -> str:
        return f"{self.stem}.{block}."

    def block_names(self, block: int) -> list[str]:
        return [name for name in self.names if name.startswith(self.prefix(block))]

    def outside(self) -> list[str]:
        """What belongs to no block: embeddings, the last norm, the head."""
        return [name for name in self.names if not _IN_BLOCK.match(name)]

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The tensors of these names, in memory of their own."""
        by_file: dict[str, list[str]] = {}
        for name in names:
            by_file.setdefault(self._files[name], []).append(name)
        read: dict[str, Tensor] = {}
        with ExitStack() as stack:
            for file, wanted in by_file.items():
                opened = stack.enter_context(safe_open(self.folder / file, framework="pt"))
                read |= {name: opened.get_tensor(name).clone() for name in wanted}
        return read

    def block(self, index: int) -> dict[str, Tensor]:
        """A block's tensors by their names within it."""
        prefix = self.prefix(index)
        return {name.removeprefix(prefix): tensor for name, tensor in self.read(self.block_names(index)).items()}


def matrices(tensors: dict[str, Tensor]) -> list[str]:
    """The layers of a block whose weight is a matrix."""
    return [
        name.removesuffix(".weight")
        for name, tensor in tensors.items()
        if name.endswith(".weight") and tensor.dim() == 2
    ]


def linear_layers(tensors: dict[str, Tensor]) -> list[str]:
    """The linear layers of a block that are compressed: all but routers and what else has to stay."""
    return [name for name in matrices(tensors) if name.rpartition(".")[2] not in KEPT]


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SourceUnusable(path, f"cannot be read as JSON ({error})") from None
    if not isinstance(config, dict):
        raise SourceUnusable(path, "should hold a JSON object")
    if "quantization_config" in config:
        raise SourceUnusable(path, "says that the model is compressed already; compress the one that it came from")
    return config


def _files(folder: Path) -> dict[str, str]:
    """Tensor to file, in the files' order."""
    index = folder / INDEX
    names = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.is_file() else [SINGLE]
    return {name: file for file in names for name in _tensors(folder / file)}


def _tensors(path: Path) -> Sequence[str]:
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (OSError, SafetensorError) as error:
        raise SourceUnusable(path, f"cannot be read as safetensors ({error})") from None
