"""How much worse a model's predictions get when one part of it alone is rounded.

A part is what an engine runs as one: a block's attention, its gates, what leads out of it. It is rounded to the nearest
on each candidate, all else stays whole, and the mean Kullback-Leibler divergence of the next token's distributions from
the whole model's is its loss there. Blocks are taken one after the other with one of them in memory: each carries on
the hidden states of every variant that began before it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from torch import Tensor, nn

from penstock_compress.blocks import Blocks
from penstock_compress.gptq import nearest
from penstock_compress.grids import Grid
from penstock_compress.source import Source, linear_layers
from penstock_compress.telling import Report

MEASURED: Final = 2048  # tokens that are enough: each variant meets the same
_PARTS: Final = {
    "attention": ("q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj"),
    "gates": ("gate_proj", "up_proj", "gate_up_proj"),
}


@dataclass(frozen=True, slots=True)
class Part:
    """Linear layers of a block that share a scheme; `name` is "block.part", `layers` are named within the block."""

    block: int
    name: str
    layers: tuple[str, ...]


Losses = dict[str, dict[str, float]]
"""Of each part, by its name, and each candidate, by its scheme's: the mean divergence in nats."""


def parts_of(block: int, tensors: dict[str, Tensor]) -> list[Part]:
    """The parts of a block that has these `tensors`."""
    named: dict[str, list[str]] = {}
    for layer in linear_layers(tensors):
        named.setdefault(_part(layer), []).append(layer)
    return [Part(block, f"{block}.{part}", tuple(layers)) for part, layers in named.items()]


def sensitivities(source: Source, tokens: Tensor, candidates: Mapping[str, Grid], report: Report) -> Losses:
    """What each part of the model loses on each of the `candidates`, by scheme; `tokens` int64 [sequences, length]."""
    blocks = Blocks(source, tokens[: max(1, MEASURED // tokens.shape[1])])
    blocks.begin()
    whole, variants = blocks.states, dict[tuple[str, str], list[Tensor]]()
    for index in range(source.blocks):
        tensors = source.block(index)
        with blocks.block(index, tensors) as layer:
            variants = {key: blocks.through(index, layer, states) for key, states in variants.items()}
            for part in parts_of(index, tensors):
                for scheme, weights in _rounded(part, tensors, candidates):
                    with _replaced(layer, weights, tensors):
                        variants[part.name, scheme] = blocks.through(index, layer, whole)
            whole = blocks.through(index, layer, whole)
        report(index + 1, source.blocks, f"sensitivity of block {index}")
    return _divergences(blocks, whole, variants)


def _part(layer: str) -> str:
    stem = layer.rpartition(".")[2]
    return next((part for part, stems in _PARTS.items() if stem in stems), stem)


def _rounded(
    part: Part, tensors: dict[str, Tensor], candidates: Mapping[str, Grid]
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The part's weights on each candidate that takes some of them, by scheme; the others stay."""
    for scheme, grid in candidates.items():
        weights = {f"{layer}.weight": tensors[f"{layer}.weight"] for layer in part.layers}
        yield (
            scheme,
            {
                name: nearest(weight, grid, weight.dtype).dequantize().to(weight.dtype)
                for name, weight in weights.items()
                if grid.takes(weight.shape[1])
            },
        )


@contextmanager
def _replaced(layer: nn.Module, weights: dict[str, Tensor], tensors: dict[str, Tensor]) -> Iterator[None]:
    """The block with other `weights` than its `tensors`, for as long as the context lasts."""
    layer.load_state_dict(weights, strict=False, assign=True)
    try:
        yield
    finally:
        layer.load_state_dict({name: tensors[name] for name in weights}, strict=False, assign=True)


def _divergences(blocks: Blocks, whole: Sequence[Tensor], variants: Mapping[tuple[str, str], list[Tensor]]) -> Losses:
    losses: Losses = {}
    sums = dict.fromkeys(variants, 0.0)
    for row, state in enumerate(whole):
        reference = blocks.logits(state).log_softmax(-1)
        for key, states in variants.items():
            other = blocks.logits(states[row]).log_softmax(-1)
            sums[key] += float((reference.exp() * (reference - other)).sum(-1).mean())
    for (part, scheme), total in sums.items():
        losses.setdefault(part, {})[scheme] = max(total / len(whole), 0.0)
    return losses
