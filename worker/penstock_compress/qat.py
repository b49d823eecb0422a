"""Quantization-aware training: a rounded model learns to answer as it did before it was rounded.

The blocks' linear layers are replaced by ones that compute with rounded weights. The blocks are trained; embeddings and
head stay. What comes of it is compressed-tensors, with the codes and scales of the last step to the bit.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from penstock_compress.compressing import OUTSIDE, Outcome
from penstock_compress.errors import SourceUnusable
from penstock_compress.fake_quant import FakeQuantLinear
from penstock_compress.learning import forget, identity_of, learn, open_model, outcome_of
from penstock_compress.lessons import Lesson
from penstock_compress.packing import quantization_config, to_tensors
from penstock_compress.recipe import Recipe
from penstock_compress.source import Source, linear_layers, matrices
from penstock_compress.target import Target, finished
from penstock_compress.telling import Report, silent
from penstock_compress.training import Training, digest_of


def qat(
    source: Path,
    target: Path,
    recipe: Recipe,
    training: Training,
    lessons: Sequence[Lesson],
    report: Report = silent,
) -> Outcome:
    """Write the model at `source`, trained on the grid of `recipe`, to the folder `target`, which is not there yet.

    The teacher is the model itself, unrounded; it also answers the lessons that bring a prompt alone. A run that was
    killed is gone on with by the same call and ends in the same bytes. Memory: the model twice in float32, and AdamW's
    two numbers for each of the blocks' weights. Raises CompressError.
    """
    opened = Source(source)
    told = {"recipe": {**recipe.as_dict(), "method": "qat", **training.as_dict()}}
    identity = digest_of(told, opened.digest, identity_of(lessons))
    if not finished(target, identity):
        work = Target(target, identity)
        if len(work.done) <= opened.blocks:
            _train_into(work, identity, opened, recipe, training, lessons, report)
        forget(work)
        kept = ["lm_head", *(layer["name"] for layer in work.report if layer["scheme"] is None)]
        described = quantization_config({recipe.grid: ["Linear"]}, recipe.activations, kept)
        config = {**opened.config, "quantization_config": described}
        work.finish(source, config, {**told, "source_sha256": opened.digest, "source_bytes": opened.bytes})
    return outcome_of(target, opened)


def fake_quantize(model: nn.Module, source: Source, recipe: Recipe) -> dict[str, FakeQuantLinear]:
    """Have every linear layer of the blocks compute on the recipe's grid, and the blocks trained; the layers by name.

    Layers whose rows the groups do not divide are trained as they are. Raises SourceUnusable for a model whose linear
    layers are not modules of their names.
    """
    rounded: dict[str, FakeQuantLinear] = {}
    for index in range(source.blocks):
        prefix = source.prefix(index)
        model.get_submodule(prefix.removesuffix(".")).requires_grad_(True)
        for name in linear_layers(source.block(index)):
            layer = _linear(model, prefix + name, source)
            if recipe.grid.takes(layer.in_features):
                rounded[prefix + name] = FakeQuantLinear(layer, recipe.grid, source.dtype, recipe.activations)
                model.set_submodule(prefix + name, rounded[prefix + name])
    return rounded


def _linear(model: nn.Module, name: str, source: Source) -> nn.Linear:
    try:
        layer = model.get_submodule(name)
    except AttributeError:
        layer = None
    if not isinstance(layer, nn.Linear):
        raise SourceUnusable(source.folder, f"does not run {name} as a linear layer, which only 'rtn' compresses")
    return layer


def _train_into(
    work: Target,
    identity: str,
    source: Source,
    recipe: Recipe,
    training: Training,
    lessons: Sequence[Lesson],
    report: Report,
) -> None:
    model = open_model(source)
    rounded = fake_quantize(model, source, recipe)
    learn(model, source, lessons, training, work, identity, report)
    if OUTSIDE not in work.done:
        work.write(OUTSIDE, source.read(source.outside()), [])
    for index in range(len(work.done) - 1, source.blocks):
        tensors, told = _block(index, model.state_dict(), rounded, source, recipe)
        work.write(f"block-{index:04}", tensors, told)


def _block(
    index: int, trained: dict[str, Tensor], rounded: dict[str, FakeQuantLinear], source: Source, recipe: Recipe
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """A block's tensors as they are stored, and which scheme each layer is in."""
    before, prefix = source.block(index), source.prefix(index)
    schemes = {name: recipe.scheme if prefix + name in rounded else None for name in matrices(before)}
    written: dict[str, Tensor] = {}
    for name, scheme in schemes.items():
        if scheme is not None:
            written |= to_tensors(prefix + name, rounded[prefix + name].rounded(), recipe.activations)
            del before[f"{name}.weight"]
    written |= {prefix + name: trained[prefix + name].to(tensor.dtype) for name, tensor in before.items()}
    return written, [{"name": prefix + name, "scheme": scheme} for name, scheme in schemes.items()]
