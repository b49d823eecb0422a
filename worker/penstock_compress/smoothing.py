"""Moving size between a linear layer's inputs and its weight, without a change of what the model computes.

Inputs divided by `s` [K] and columns multiplied by `s` give the same product, and rounding loses less where the columns
that matter, or the inputs that stick out, lie better on their grid. The division is folded into what makes the inputs:
a norm's factors, or the rows of a linear layer.

    AWQ          s = mean |x|^a, normed; a is what gives the least error of the outputs, of 20 tried.
                 Source: Lin et al., "AWQ: Activation-aware Weight Quantization", 2023 (arXiv 2306.00978).
    SmoothQuant  s = max |x|^a / max |w|^(1 - a), a = 0.5.
                 Source: Xiao et al., "SmoothQuant", 2022 (arXiv 2211.10438).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from penstock_compress.gptq import nearest
from penstock_compress.grids import Grid
from penstock_compress.statistics import InputStatistics, output_error

TRIED: Final = 20  # powers between 0 and 1
LEAST: Final = 1e-4  # of a factor
MOVED: Final = 0.5  # share of the inputs' size that SmoothQuant moves to the weight


@dataclass(frozen=True, slots=True)
class Fold:
    """Where the inputs of linear layers come from.

    `source` is a norm, or a linear layer whose last rows, as many as `targets` have columns, are those inputs but for
    an elementwise factor. `targets` share the inputs. `offset` is added to a norm's factors when it runs: Gemma's is 1.
    """

    source: str
    targets: tuple[str, ...]
    is_norm: bool
    offset: float = 0.0


def awq_factors(weights: Sequence[Tensor], inputs: InputStatistics, grid: Grid, dtype: torch.dtype) -> Tensor | None:
    """Factors [K] for the inputs of `weights`, each [N, K], that are to be on `grid`; None if leaving them is best."""
    hessian, sizes = inputs.mean_hessian, inputs.mean_size.clamp(min=LEAST)
    best, least = None, sum(_error(weight, None, hessian, grid, dtype) for weight in weights)
    for step in range(1, TRIED + 1):
        factors = sizes ** (step / TRIED)
        factors = factors / (factors.max() * factors.min()).sqrt()
        error = sum(_error(weight, factors, hessian, grid, dtype) for weight in weights)
        if error < least:
            best, least = factors, error
    return best


def smoothquant_factors(weights: Sequence[Tensor], inputs: InputStatistics) -> Tensor:
    """Factors [K] for the inputs of `weights`, each [N, K]."""
    columns = torch.stack([weight.float().abs().amax(0) for weight in weights]).amax(0).clamp(min=LEAST)
    return (inputs.largest.clamp(min=LEAST) ** MOVED / columns ** (1 - MOVED)).clamp(min=LEAST)


def apply_factors(tensors: dict[str, Tensor], fold: Fold, factors: Tensor) -> None:
    """Fold `factors` [K] into a block's `tensors`, named as in the checkpoint, in their dtype."""
    for target in fold.targets:
        _scale(tensors, f"{target}.weight", factors)
    if fold.is_norm:
        name = f"{fold.source}.weight"
        norm = tensors[name]
        tensors[name] = ((norm.float() + fold.offset) / factors - fold.offset).to(norm.dtype)
        _divide_rows(tensors, f"{fold.source}.bias", factors)
        return
    _divide_rows(tensors, f"{fold.source}.weight", factors)
    _divide_rows(tensors, f"{fold.source}.bias", factors)


def scaled_statistics(inputs: InputStatistics, factors: Tensor) -> InputStatistics:
    """What `inputs` are once they are divided by `factors` [K]."""
    hessian = inputs.hessian / factors / factors[:, None]
    return InputStatistics(hessian, inputs.sums / factors, inputs.largest / factors, inputs.rows)


def folds_of(names: Mapping[str, Tensor], *, gemma: bool) -> list[Fold]:
    """The folds of a block whose linear layers and norms are named as those of Llama and its kin."""
    has = {name.removesuffix(".weight") for name in names if name.endswith(".weight")}
    before_mlp = "pre_feedforward_layernorm" if "pre_feedforward_layernorm" in has else "post_attention_layernorm"
    offset = 1.0 if gemma else 0.0
    folds = [
        Fold("input_layernorm", _those(has, "self_attn", ("q_proj", "k_proj", "v_proj", "qkv_proj")), True, offset),
        Fold(before_mlp, _those(has, "mlp", ("gate_proj", "up_proj", "gate_up_proj")), True, offset),
        Fold("self_attn.v_proj", _those(has, "self_attn", ("o_proj",)), False),
        Fold("mlp.up_proj", _those(has, "mlp", ("down_proj",)), False),
        Fold("mlp.gate_up_proj", _those(has, "mlp", ("down_proj",)), False),
    ]
    return [fold for fold in folds if fold.source in has and fold.targets and _fits(names, fold)]


def _those(has: set[str], part: str, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(full for full in (f"{part}.{name}" for name in names) if full in has)


def _fits(names: Mapping[str, Tensor], fold: Fold) -> bool:
    """Whether the source makes as many numbers as the targets take: V's heads may be fewer than O's."""
    made, taken = len(names[f"{fold.source}.weight"]), names[f"{fold.targets[0]}.weight"].shape[1]
    return made == taken or fold.source == "mlp.gate_up_proj"


def _error(weight: Tensor, factors: Tensor | None, hessian: Tensor, grid: Grid, dtype: torch.dtype) -> float:
    """What rounding `weight` does to its outputs, in squares, with its columns multiplied by `factors` meanwhile."""
    whole = weight.float()
    if factors is None:
        return output_error(nearest(whole, grid, dtype).dequantize() - whole, hessian)
    return output_error(nearest(whole * factors, grid, dtype).dequantize() / factors - whole, hessian)


def _scale(tensors: dict[str, Tensor], name: str, factors: Tensor) -> None:
    tensors[name] = (tensors[name].float() * factors).to(tensors[name].dtype)


def _divide_rows(tensors: dict[str, Tensor], name: str, factors: Tensor) -> None:
    """Divide the last rows, as many as there are factors, where there is such a tensor."""
    if name not in tensors:
        return
    whole = tensors[name].float().clone()
    rows = factors if whole.dim() == 1 else factors[:, None]
    whole[-len(factors) :] /= rows
    tensors[name] = whole.to(tensors[name].dtype)
