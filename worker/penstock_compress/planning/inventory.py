"""What a model is made of: counted on a copy of it that has shapes and no weights."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

import torch
from penstock_engine.config import EngineConfig, KVDType, Quantization
from penstock_engine.errors import ModelLoadError
from penstock_engine.layers.linear import Linear
from penstock_engine.loading import resolve_dtype
from penstock_engine.model_config import ModelConfig, read_model_config
from penstock_engine.models import MODELS, DecoderLM
from penstock_engine.sizing import KVShape
from safetensors import safe_open
from torch import nn

from penstock_compress.errors import SourceUnusable

KEPT: Final = frozenset({"gate", "lm_head"})  # as the engine keeps them when it rounds
GROUPS: Final = (128, 64, 32)  # the engine's, the first of which that divides a width
TILE: Final = 128  # 4-bit weights are filled up to multiples of it
WORD: Final = 4  # bytes of a scale of 8 bits' rows, and of a scale with its zero


@dataclass(frozen=True, slots=True)
class Matrix:
    """The weight of a linear layer that may be rounded. `of_expert`: only tokens that are sent there read it."""

    rows: int
    columns: int
    of_expert: bool = False

    @property
    def numbers(self) -> int:
        return self.rows * self.columns

    def bytes(self, quantization: Quantization | None, whole: int) -> int:
        """Bytes that the engine holds of it on a GPU; `whole` are those of a number that is not rounded."""
        if quantization is None:
            return self.numbers * whole
        group = next((size for size in GROUPS if self.columns % size == 0), None)
        if quantization != "int4" or group is None:
            return self.numbers + self.rows * WORD
        height, width = (-(-size // TILE) * TILE for size in (self.rows, self.columns))
        return height * width // 2 + height * (width // min(group, TILE)) * WORD


@dataclass(frozen=True, slots=True)
class Inventory:
    """A model's parts. `head` and `rest` are bytes; the embeddings, of which a step reads a few rows, are in `rest`.

    `roundable`: the engine can round it as it loads. `stored` is the bytes of a checkpoint that is compressed already,
    which is taken as it is; None: it is not.
    """

    config: ModelConfig
    dtype: torch.dtype
    matrices: tuple[Matrix, ...]
    head_numbers: int
    rest: int
    tied: bool
    roundable: bool = True
    stored: int | None = None

    def weights(self, quantization: Quantization | None) -> int:
        """Bytes of all weights."""
        return self._blocks(quantization) + self._head + self.rest

    def read_by_step(self, quantization: Quantization | None, tokens: int) -> float:
        """Bytes of weights that a step of so many tokens reads: each expert only as likely as some token takes it."""
        met = sum(matrix.numbers * self._met(matrix, tokens) for matrix in self.matrices)
        share = met / sum(matrix.numbers for matrix in self.matrices)
        return self._blocks(quantization) * share + self.head_numbers * self.dtype.itemsize

    @property
    def numbers_for_token(self) -> float:
        """Weights that one token is multiplied with, without the head."""
        return sum(matrix.numbers * self._met(matrix, 1) for matrix in self.matrices)

    def kv_shape(self, page_size: int, kv_dtype: KVDType) -> KVShape:
        config = EngineConfig(page_size=page_size, kv_dtype=kv_dtype)
        return KVShape.of(self.config, config, self.dtype)

    def step_bytes(self, tokens: int, rows: int) -> int:
        """Most that a step of `tokens` holds at once besides weights and K/V, `rows` of which are sampled after.

        The widest block's inputs, products and gate, with the residual; then the logits in float32, with a copy that is
        penalised, sorted values, their order in 64 bits and their running sum.
        """
        config = self.config
        inner = config.experts.intermediate_size if config.experts else config.intermediate_size
        attended = (2 * config.heads + 2 * config.kv_heads) * config.head_dim
        widest = max(3 * inner, attended)
        return tokens * (4 * config.hidden_size + widest) * self.dtype.itemsize + rows * config.vocab_size * 24

    @property
    def _head(self) -> int:
        return 0 if self.tied else self.head_numbers * self.dtype.itemsize

    def _blocks(self, quantization: Quantization | None) -> int:
        if self.stored is not None:
            return self.stored - self._head - self.rest
        return sum(matrix.bytes(quantization, self.dtype.itemsize) for matrix in self.matrices)

    def _met(self, matrix: Matrix, tokens: int) -> float:
        """How likely some of the tokens go through the matrix, where each takes experts at random."""
        experts = self.config.experts
        if experts is None or not matrix.of_expert:
            return 1.0
        return 1.0 - (1.0 - experts.chosen / experts.count) ** tokens


def take_inventory(folder: Path) -> Inventory:
    """Count the model in `folder`, of which config.json is enough unless it is compressed.

    Raises SourceUnusable where the engine would not run it.
    """
    try:
        config = read_model_config(folder)
        dtype = resolve_dtype("auto", config, folder)
        model = _without_weights(folder, config, dtype)
    except ModelLoadError as error:
        raise SourceUnusable(folder, str(error)) from None
    native = isinstance(model, DecoderLM)
    matrices = tuple(_matrices(model) if isinstance(model, DecoderLM) else _their_matrices(model))
    tensors = {id(each): each for each in (*model.parameters(), *model.buffers())}.values()
    total = sum(each.numel() * each.element_size() for each in tensors)
    head_numbers = config.vocab_size * config.hidden_size
    counted = sum(matrix.numbers for matrix in matrices) + (0 if config.tied_embeddings else head_numbers)
    return Inventory(
        config,
        dtype,
        matrices,
        head_numbers,
        rest=total - counted * dtype.itemsize,
        tied=config.tied_embeddings,
        roundable=native,
        stored=_stored_bytes(folder) if config.format is not None else None,
    )


def _without_weights(folder: Path, config: ModelConfig, dtype: torch.dtype) -> nn.Module:
    build = MODELS.get(config.model_type)
    with torch.device("meta"):
        if build is not None:
            return build(config, config.max_positions, dtype, torch.device("meta"))
        from penstock_engine.models.bridge_config import read_their_config  # transformers: seconds of import
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_config(read_their_config(folder), dtype=dtype)  # type: ignore[no-any-return]


def _matrices(model: DecoderLM) -> Iterator[Matrix]:
    for name, module in model.named_modules():
        if isinstance(module, Linear) and name.rpartition(".")[2] not in KEPT:
            rows, columns = module.weight.shape
            yield Matrix(rows, columns, of_expert=".experts." in name)


def _their_matrices(model: Any) -> Iterator[Matrix]:
    """Of a model of transformers: all but what begins and ends it."""
    apart = {id(each.weight) for each in (model.get_input_embeddings(), model.get_output_embeddings())}
    for weight in model.parameters():
        if weight.dim() >= 2 and id(weight) not in apart:
            yield Matrix(weight.numel() // weight.shape[-1], weight.shape[-1])


def _stored_bytes(folder: Path) -> int:
    """Bytes of the tensors of a compressed checkpoint."""
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            slices = (file.get_slice(name) for name in file.keys())  # noqa: SIM118 (not a dict)
            total += sum(prod(each.get_shape()) * _ITEMSIZE[each.get_dtype()] for each in slices)
    if total == 0:
        raise SourceUnusable(folder, "is compressed, and holds no weights to count; give the folder that does")
    return total


_ITEMSIZE: Final = {
    "BF16": 2, "F16": 2, "F32": 4, "F64": 8, "F8_E4M3": 1, "F8_E5M2": 1,
    "I8": 1, "U8": 1, "I16": 2, "I32": 4, "I64": 8, "BOOL": 1,
}  # fmt: skip
