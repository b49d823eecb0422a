"""Which part of a model gets how many bits: the least loss that a number of bytes buys.

The losses of parts are measured one by one and taken to add up. What is chosen from is every part on every candidate,
and every part as it is.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from torch import Tensor

from penstock_compress.errors import BudgetTooSmall
from penstock_compress.grids import Grid
from penstock_compress.packing import FILE_BYTES, stored_bytes, whole_bytes
from penstock_compress.recipe import Recipe, bytes_of
from penstock_compress.sensitivity import Losses, parts_of, sensitivities
from penstock_compress.source import Source
from penstock_compress.telling import Report

CANDIDATES: Final = ("int8-weights", "int4", "int3")
"""Schemes that one checkpoint holds side by side: all are packed, and leave the inputs as they are."""
WHOLE: Final = "whole"
"""The choice of leaving a part as it is."""
KEPT: Final = 4096  # partial choices that are gone on with at most, the best for so many sizes


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of a compressed model: `fixed` that no choice changes, and of each part by its name and the scheme."""

    fixed: int
    parts: Mapping[str, Mapping[str, int]]

    @property
    def least(self) -> int:
        """The bytes of the smallest model that can be chosen."""
        return self.fixed + sum(min(of.values()) for of in self.parts.values())


class _Partial(NamedTuple):
    """A choice for the first parts: its bytes, its loss, the last part's scheme and the choice before it."""

    bytes: int
    loss: float
    scheme: str
    before: "_Partial | None"


def plan(source: Source, tokens: Tensor, recipe: Recipe, report: Report) -> dict[str, Any]:
    """What each part becomes, for a recipe whose scheme is `mixed`, as it is told in the checkpoint's report.

    `{"budget": bytes, "parts": {name: {"scheme", "bytes", "loss"}}}`; bytes and losses are by scheme, losses in nats.
    Raises BudgetTooSmall before anything is measured.
    """
    candidates = {scheme: recipe.of(scheme).grid for scheme in CANDIDATES}
    budget, sizes = bytes_of(str(recipe.target_bytes), source.bytes), sizes_of(source, candidates)
    if budget < sizes.least:
        raise BudgetTooSmall(budget, sizes.least)
    losses = sensitivities(source, tokens, candidates, report)
    chosen = choose(sizes, losses, budget)
    parts = {
        name: {"scheme": scheme, "bytes": dict(sizes.parts[name]), "loss": losses[name]}
        for name, scheme in chosen.items()
    }
    return {"budget": budget, "parts": parts}


def schemes_of(planned: Mapping[str, Any], block: int, tensors: dict[str, Tensor]) -> dict[str, str | None]:
    """By the plan, the scheme of each linear layer of a block that has these `tensors`; None for one that stays."""
    told = planned["parts"]
    schemes = {part: told[part.name]["scheme"] for part in parts_of(block, tensors)}
    return {layer: None if scheme == WHOLE else scheme for part, scheme in schemes.items() for layer in part.layers}


def sizes_of(source: Source, candidates: Mapping[str, Grid]) -> Sizes:
    """What each part of the model takes on each of the `candidates`, and as it is; never less than in the file."""
    fixed = FILE_BYTES + sum(whole_bytes(name, tensor) for name, tensor in source.read(source.outside()).items())
    parts: dict[str, dict[str, int]] = {}
    for index in range(source.blocks):
        tensors, prefix = source.block(index), source.prefix(index)
        fixed += FILE_BYTES + sum(whole_bytes(prefix + name, tensor) for name, tensor in tensors.items())
        for part in parts_of(index, tensors):
            weights = {prefix + layer: tensors[f"{layer}.weight"] for layer in part.layers}
            whole = sum(whole_bytes(f"{name}.weight", weight) for name, weight in weights.items())
            fixed -= whole
            parts[part.name] = {WHOLE: whole} | {
                scheme: sum(stored_bytes(name, weight, grid) for name, weight in weights.items())
                for scheme, grid in candidates.items()
            }
    return Sizes(fixed, parts)


def choose(sizes: Sizes, losses: Losses, budget: int) -> dict[str, str]:
    """The scheme of each part, so that the model takes at most `budget` bytes and loses least.

    Exact, but for models of so many sizes that only the best of about the same size are gone on with. There is a
    choice where `budget` is at least `sizes.least`.
    """
    rest = sizes.least
    front = [_Partial(sizes.fixed, 0.0, "", None)]
    for part, of in sizes.parts.items():
        rest -= min(of.values())
        most = budget - (rest - sizes.fixed)  # what the parts that follow leave
        front = _front(
            _Partial(before.bytes + size, before.loss + losses[part].get(scheme, 0.0), scheme, before)
            for before in front
            for scheme, size in of.items()
            if before.bytes + size <= most
        )
    return dict(zip(sizes.parts, _schemes(front[-1]), strict=True))


def _front(partials: Iterable[_Partial]) -> list[_Partial]:
    """Those that no other of at most their size beats, by size; the last loses least."""
    kept: list[_Partial] = []
    for each in sorted(partials, key=lambda partial: partial[:2]):
        if not kept or each.loss < kept[-1].loss:
            kept.append(each)
    if len(kept) <= KEPT:
        return kept
    least, span = kept[0].bytes, kept[-1].bytes - kept[0].bytes
    return list({(each.bytes - least) * KEPT // span: each for each in kept}.values())


def _schemes(last: _Partial) -> list[str]:
    """The schemes of a choice, from the first part to the last."""
    schemes, each = [], last
    while each.before is not None:
        schemes.append(each.scheme)
        each = each.before
    return schemes[::-1]
