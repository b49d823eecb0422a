"""From a checkpoint and a recipe to a smaller checkpoint: block by block, resumable, the same for the same seed."""

import hashlib
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from penstock_compress import mixed, smoothing
from penstock_compress.blocks import Blocks
from penstock_compress.clipping import clipped, takes_clipping
from penstock_compress.errors import CalibrationUnusable, SourceUnusable
from penstock_compress.gptq import gptq, nearest
from penstock_compress.grids import SMALLEST, Grid, Rounded
from penstock_compress.kv_scales import KVRanges
from penstock_compress.packing import quantization_config, to_tensors
from penstock_compress.recipe import MIXED, Recipe
from penstock_compress.source import Source, linear_layers, matrices
from penstock_compress.statistics import InputStatistics, multiplied_as, output_error
from penstock_compress.target import REPORT, Target, finished
from penstock_compress.telling import Report, silent

OUTSIDE: Final = "outside"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A compressed model: its folder, and the bytes of its weights beside those of the source."""

    folder: Path
    bytes: int
    source_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """All that a program wants to know of it: also each file's SHA-256, the recipe, and what each layer lost."""
        report = json.loads((self.folder / REPORT).read_text())
        return {
            "out": str(self.folder),
            "bytes": self.bytes,
            "source_bytes": self.source_bytes,
            "files": {path.name: _sha256(path) for path in sorted(self.folder.iterdir())},
            "recipe": report["recipe"],
            "layers": report["layers"],
        }


def compress(
    source: Path, target: Path, recipe: Recipe, tokens: Tensor | None = None, report: Report | None = None
) -> Outcome:
    """Write what `recipe` makes of the model at `source` to the folder `target`, which is not there yet.

    `tokens` int64 [samples, length] calibrate where the method does. A run that was killed is gone on with by the same
    call, and one that ended before is left as it is. Memory: one block beyond the embeddings, and the hidden states of
    the calibration. Raises CompressError.
    """
    opened = Source(source)
    if recipe.calibrated and (tokens is None or tokens.dim() != 2):
        raise CalibrationUnusable(f"{recipe.method} needs calibration tokens, as int64 [samples, length]")
    identity = f"{opened.digest} {recipe.digest} {_digest(tokens if recipe.calibrated else None)}"
    if finished(target, identity):
        return Outcome(target, _weights(target), opened.bytes)
    run = _Run(opened, Target(target, identity), recipe, tokens)
    run.through(report or silent)
    return Outcome(target, run.finish(), opened.bytes)


class _Run:
    """One model on its way through one recipe."""

    def __init__(self, source: Source, target: Target, recipe: Recipe, tokens: Tensor | None) -> None:
        self.source, self.target, self.recipe, self.tokens = source, target, recipe, tokens
        self.dtype = source.dtype
        self.blocks = Blocks(source, tokens) if recipe.calibrated and tokens is not None else None
        self.plan: dict[str, Any] | None = None

    def through(self, report: Report) -> None:
        before = self.source.blocks if self.recipe.scheme == MIXED else 0  # parts of the way that measure
        total = before + self.source.blocks + 1
        if self.recipe.scheme == MIXED and self.tokens is not None:
            self.plan = self.target.plan()
            if self.plan is None:
                measured = partial(_of_more, report, total)
                self.plan = mixed.plan(self.source, self.tokens, self.recipe, measured)
                self.target.keep_plan(self.plan)
        if OUTSIDE not in self.target.done:
            self.target.write(OUTSIDE, self.source.read(self.source.outside()), [])
        first = len(self.target.done) - 1
        if self.blocks is not None and first < self.source.blocks:
            self.blocks.begin(self.target.states(first) if first else None)
        report(before + first + 1, total, f"block {first}")
        for index in range(first, self.source.blocks):
            self._block(index)
            report(before + index + 2, total, f"block {index}")

    def finish(self) -> int:
        """Give the folder its name; the bytes of its weights."""
        kept = ["lm_head", *(told["name"] for told in self.target.report if told["scheme"] is None)]
        grids = self._grids()
        described = quantization_config(grids, self.recipe.activations, kept, self.recipe.kv)
        config = self.source.config | ({"quantization_config": described} if grids or self.recipe.kv else {})
        told = {"recipe": self.recipe.as_dict(), "source_sha256": self.source.digest, "source_bytes": self.source.bytes}
        self.target.finish(self.source.folder, config, told | ({} if self.plan is None else {"mixed": self.plan}))
        return _weights(self.target.folder)

    def _grids(self) -> dict[Grid, list[str]]:
        """What is on each grid: all linear layers, or those that the plan puts there, by name."""
        if self.plan is None:
            return {self.recipe.grid: ["Linear"]}
        grids: dict[Grid, list[str]] = {}
        for told in self.target.report:
            if told["scheme"] is not None:
                grids.setdefault(self.recipe.of(told["scheme"]).grid, []).append(told["name"])
        return grids

    def _block(self, index: int) -> None:
        tensors = self.source.block(index)
        recipes = self._recipes(index, tensors)
        extra: dict[str, Tensor] = {}
        if self.blocks is None:
            rounded = {name: _nearest(recipe, tensors[f"{name}.weight"]) for name, recipe in recipes.items()}
            told = [self._told(index, name, rounded[name], recipe) for name, recipe in recipes.items()]
        else:
            rounded, told, extra = self._calibrated(self.blocks, index, tensors, recipes)
            self.target.keep_states(index + 1, self.blocks.states)
        told += [self._told(index, name, None, None) for name in matrices(tensors) if name not in recipes]
        self.target.write(f"block-{index:04}", self._written(index, tensors | extra, rounded), told)
        self.target.drop_states(index)

    def _recipes(self, index: int, tensors: dict[str, Tensor]) -> dict[str, Recipe | None]:
        """The recipe of each of a block's linear layers; None for one that stays."""
        if self.plan is None:
            return dict.fromkeys(linear_layers(tensors), self.recipe)
        schemes = mixed.schemes_of(self.plan, index, tensors)
        return {name: None if scheme is None else self.recipe.of(scheme) for name, scheme in schemes.items()}

    def _calibrated(
        self, blocks: Blocks, index: int, tensors: dict[str, Tensor], recipes: dict[str, Recipe | None]
    ) -> tuple[dict[str, Rounded | None], list[dict[str, Any]], dict[str, Tensor]]:
        with blocks.block(index, tensors) as layer:
            inputs = blocks.observe(index, layer, list(recipes))
            silent = [name for name in recipes if name not in inputs]
            if silent:
                raise SourceUnusable(self.source.folder, f"block {index} never ran {silent[0]} over the calibration")
            self._smooth(tensors, inputs, recipes)
            rounded = {
                name: self._round(name, recipe, tensors[f"{name}.weight"], inputs[name])
                for name, recipe in recipes.items()
            }
            told = [
                self._told(index, name, rounded[name], recipe)
                | _moved(rounded[name], tensors[f"{name}.weight"], inputs[name].mean_hessian, self.dtype)
                for name, recipe in recipes.items()
            ]
            layer.load_state_dict({**tensors, **_values(rounded, self.dtype)}, assign=True)
            ranges = KVRanges()
            blocks.advance(index, layer, None if self.recipe.kv is None else ranges)
        return rounded, told, {} if self.recipe.kv is None else ranges.tensors(self.recipe.kv, self.dtype)

    def _smooth(
        self, tensors: dict[str, Tensor], inputs: dict[str, InputStatistics], recipes: dict[str, Recipe | None]
    ) -> None:
        """Fold what AWQ or SmoothQuant find into the block's tensors; inputs become what they are then."""
        if self.recipe.method not in ("awq", "smoothquant"):
            return
        gemma = str(self.source.config.get("model_type", "")).startswith("gemma")
        for fold in smoothing.folds_of(tensors, gemma=gemma):
            shared, recipe = inputs[fold.targets[0]], recipes[fold.targets[0]]
            factors = self._factors([tensors[f"{name}.weight"] for name in fold.targets], shared, recipe)
            if factors is None:
                continue
            smoothing.apply_factors(tensors, fold, factors)
            scaled = smoothing.scaled_statistics(shared, factors)
            inputs.update(dict.fromkeys(fold.targets, scaled))

    def _factors(self, weights: list[Tensor], inputs: InputStatistics, recipe: Recipe | None) -> Tensor | None:
        if recipe is None:
            return None
        if recipe.method == "smoothquant":
            return smoothing.smoothquant_factors(weights, inputs)
        with multiplied_as(self.dtype):
            return smoothing.awq_factors(weights, inputs, recipe.grid, self.dtype)

    def _round(self, name: str, recipe: Recipe | None, weight: Tensor, inputs: InputStatistics) -> Rounded | None:
        if recipe is None or not recipe.grid.takes(weight.shape[1]):
            return None
        if recipe.method == "gptq":
            hessian = inputs.mean_hessian
            return gptq(weight, hessian, recipe.grid, self.dtype, damping=recipe.damping, act_order=recipe.act_order)
        if recipe.method == "awq" and takes_clipping(name):
            with multiplied_as(self.dtype):
                return clipped(weight, inputs.mean_hessian, recipe.grid, self.dtype)
        return _nearest(recipe, weight)

    def _written(self, index: int, tensors: dict[str, Tensor], rounded: dict[str, Rounded | None]) -> dict[str, Tensor]:
        """The block's tensors as they are stored, under their full names."""
        prefix = self.source.prefix(index)
        written: dict[str, Tensor] = {}
        replaced = {f"{name}.weight" for name, one in rounded.items() if one is not None}
        for name, one in rounded.items():
            if one is not None:
                written |= to_tensors(prefix + name, one, self.recipe.activations)
        return written | {prefix + name: tensor for name, tensor in tensors.items() if name not in replaced}

    def _told(self, index: int, name: str, rounded: Rounded | None, recipe: Recipe | None) -> dict[str, Any]:
        """What the report says of a layer: the scheme that it is in, or None for one that stays as it was."""
        scheme = None if rounded is None or recipe is None else recipe.scheme
        return {"name": self.source.prefix(index) + name, "scheme": scheme}


def _nearest(recipe: Recipe | None, weight: Tensor) -> Rounded | None:
    """None for a weight that stays, as one does whose rows the groups do not divide."""
    if recipe is None or not recipe.grid.takes(weight.shape[1]):
        return None
    return nearest(weight, recipe.grid, weight.dtype)


def _of_more(report: Report, total: int, done: int, _of: int, what: str) -> None:
    """Tells of the first steps of a way that has more of them."""
    report(done, total, what)


def _weights(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(tokens: Tensor | None) -> str:
    return "" if tokens is None else hashlib.sha256(tokens.contiguous().numpy().tobytes()).hexdigest()


def _values(rounded: dict[str, Rounded | None], dtype: torch.dtype) -> dict[str, Tensor]:
    return {f"{name}.weight": one.dequantize().to(dtype) for name, one in rounded.items() if one is not None}


def _moved(rounded: Rounded | None, weight: Tensor, hessian: Tensor, dtype: torch.dtype) -> dict[str, float]:
    """How much of its outputs' size, in squares, the rounding moved; in the precision of `dtype`."""
    if rounded is None:
        return {}
    whole, difference = weight.float(), rounded.dequantize() - weight.float()
    with multiplied_as(dtype):
        return {"output_error": output_error(difference, hessian) / max(output_error(whole, hessian), SMALLEST)}
