"""The tensors of rounded layers, gathered while a checkpoint is read: those of a layer may lie in several files."""

from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor

from penstock_engine.errors import ModelUnsupported
from penstock_engine.formats import KV_SCALES, StoredPart
from penstock_engine.layers.linear import Linear
from penstock_engine.models import DecoderLM

PLAIN = (torch.bfloat16, torch.float16, torch.float32)


class RoundedLayers:
    """Those of one model; it has none where its checkpoint is a plain one."""

    def __init__(self, model: DecoderLM) -> None:
        self._format = model.config.format
        self._layers = dict(model.linear_parts()) if self._format is not None else {}
        self._paths: dict[str, Path] = {}
        self._tensors: dict[str, dict[str, Tensor]] = defaultdict(dict)

    def takes(self, path: Path, name: str, tensor: Tensor) -> bool:
        """Keep `tensor` if it is one of a rounded layer's; of a `weight` its numbers tell whether it is."""
        stem, _, suffix = name.rpartition(".")
        if self._format is not None and self._format.kv_dtype is not None and suffix in KV_SCALES:
            return True  # which nothing needs: K and V get scales of their own as they are computed
        if self._format is None or stem not in self._layers or suffix not in self._format.suffixes:
            return False
        if suffix == "weight" and tensor.dtype in PLAIN:
            return False
        self._paths[stem] = path
        self._tensors[stem][suffix] = tensor
        return True

    def hand_over(self, path: Path) -> list[str]:
        """Give each layer what is stored of it; the names of all parts that were. Raises ModelUnsupported."""
        parts: dict[Linear, list[str]] = defaultdict(list)
        for stem, layer in self._layers.items():
            parts[layer].append(stem)
        for layer, stems in parts.items():
            rounded = [stem for stem in stems if stem in self._tensors]
            if rounded and len(rounded) < len(stems):
                plain = next(stem for stem in stems if stem not in self._tensors)
                problem = f"{rounded[0]} is rounded and {plain} is not, which run as one layer"
                raise ModelUnsupported(path, problem, "store both in one format")
            if rounded:
                layer.take([self._part(stem) for stem in stems])
        return list(self._tensors)

    def _part(self, stem: str) -> StoredPart:
        assert self._format is not None  # nothing was taken otherwise
        return StoredPart(self._paths[stem], stem, self._format, self._tensors[stem])
