"""GPTQ, AWQ and SmoothQuant do what their papers say: less is lost where inputs say that it matters."""

import pytest
import torch
from penstock_compress.clipping import clipped, takes_clipping
from penstock_compress.gptq import gptq, nearest
from penstock_compress.grids import Grid
from penstock_compress.smoothing import (
    Fold,
    apply_factors,
    awq_factors,
    folds_of,
    scaled_statistics,
    smoothquant_factors,
)
from penstock_compress.statistics import InputStatistics, output_error
from torch import Tensor

INT4 = Grid(4, scope="group", group=32)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def weight() -> Tensor:
    return draw(48, 96, seed=1)


@pytest.fixture
def inputs() -> InputStatistics:
    """Inputs that depend on each other, some of them large."""
    x = draw(700, 96, seed=2) @ draw(96, 96, seed=3) * (1 + 9 * (torch.arange(96) % 16 == 5))
    statistics = InputStatistics.of_width(96)
    for part in x.split(100):
        statistics.add(part)
    return statistics


def test_statistics_are_those_of_all_inputs() -> None:
    x, statistics = draw(50, 6, seed=4), InputStatistics.of_width(6)
    for part in x.view(5, 10, 6):
        statistics.add(part[None])
    assert torch.allclose(statistics.mean_hessian, x.T @ x / 50, atol=1e-5)
    assert torch.allclose(statistics.mean_size, x.abs().mean(0), atol=1e-6)
    assert torch.equal(statistics.largest, x.abs().amax(0))
    difference = draw(3, 6, seed=5)
    error = (x @ difference.T).pow(2).sum(-1).mean()
    assert output_error(difference, statistics.mean_hessian) == pytest.approx(float(error), rel=1e-4)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize(
    "grid",
    [INT4, Grid(4), Grid(4, symmetric=False, scope="group", group=32), Grid(3, scope="group", group=48), Grid(8)],
    ids=["int4", "channel", "asymmetric", "int3", "int8"],
)
def test_gptq_loses_far_less_of_the_outputs(
    weight: Tensor, inputs: InputStatistics, grid: Grid, act_order: bool
) -> None:
    hessian = inputs.mean_hessian
    plain = output_error(nearest(weight, grid, torch.float32).dequantize() - weight, hessian)
    rounded = gptq(weight, hessian, grid, torch.float32, act_order=act_order)
    assert output_error(rounded.dequantize() - weight, hessian) < 0.6 * plain
    assert int(rounded.codes.min()) >= grid.least
    assert int(rounded.codes.max()) <= grid.most


def test_gptq_of_independent_inputs_is_rounding_to_the_nearest(weight: Tensor) -> None:
    rounded = gptq(weight, torch.eye(96), Grid(4), torch.float32)
    assert torch.equal(rounded.codes, nearest(weight, Grid(4), torch.float32).codes)


def test_gptq_is_the_papers_recursion(weight: Tensor, inputs: InputStatistics) -> None:
    """Against the plain form: after each column, solve anew for the columns that are left."""
    hessian = inputs.mean_hessian.double()
    hessian.diagonal().add_(0.01 * hessian.diagonal().mean())
    grid, left = Grid(4), weight.double().clone()
    scale = nearest(weight, grid, torch.float32).scales.scale.double()
    for column in range(96):
        inverse = torch.linalg.inv(hessian[column:, column:])
        code = (left[:, column : column + 1] / scale).round().clamp(grid.least, grid.most)
        loss = (left[:, column : column + 1] - code * scale) / inverse[0, 0]
        left[:, column + 1 :] -= loss * inverse[0, 1:]
        left[:, column : column + 1] = code * scale
    ours = gptq(weight, inputs.mean_hessian, grid, torch.float32).dequantize()
    assert ((ours - left).abs() > 1e-4).double().mean() < 0.01  # a few ties fall otherwise in 32 bits


def test_an_input_that_is_always_zero_and_a_singular_hessian_are_no_obstacle(weight: Tensor) -> None:
    x = draw(10, 96, seed=6)
    x[:, 7] = 0
    rounded = gptq(weight, x.T @ x / 10, INT4, torch.float32)
    assert torch.isfinite(rounded.dequantize()).all()
    assert (rounded.dequantize() - weight).abs()[:, 7].max() < 1


def test_awq_finds_factors_that_lose_less(weight: Tensor, inputs: InputStatistics) -> None:
    factors = awq_factors([weight], inputs, INT4, torch.float32)
    assert factors is not None
    hessian = inputs.mean_hessian
    plain = output_error(nearest(weight, INT4, torch.float32).dequantize() - weight, hessian)
    scaled = nearest(weight * factors, INT4, torch.float32).dequantize() / factors
    assert output_error(scaled - weight, hessian) < 0.9 * plain


def test_awq_leaves_alone_what_no_factor_betters(weight: Tensor) -> None:
    even = InputStatistics(torch.eye(96), torch.ones(96), torch.ones(96), 1)
    assert awq_factors([weight], even, INT4, torch.float32) is None


@pytest.mark.parametrize("grid", [INT4, Grid(4), Grid(4, symmetric=False, scope="group", group=32)])
def test_ranges_are_cut_where_inputs_hardly_meet_what_sticks_out(grid: Grid) -> None:
    weight, x = draw(48, 96, seed=1), draw(700, 96, seed=2)
    weight[:, ::32] *= 8
    x[:, ::32] *= 0.02
    hessian = x.T @ x / len(x)
    plain = nearest(weight, grid, torch.float32)
    cut = clipped(weight, hessian, grid, torch.float32)
    lost = [output_error(rounded.dequantize() - weight, hessian) for rounded in (plain, cut)]
    assert lost[1] < 0.7 * lost[0]
    assert (cut.scales.scale <= plain.scales.scale).all()


def test_a_cut_loses_no_more_of_any_output_and_none_is_made_where_it_would(weight: Tensor) -> None:
    x = draw(700, 96, seed=2) @ draw(96, 96, seed=3)
    weight[0, 7], x[:, 7] = 30, 100 * x[:, 7]  # the end of a range, and met by the largest input
    hessian = x.T @ x / len(x)
    plain, cut = nearest(weight, INT4, torch.float32), clipped(weight, hessian, INT4, torch.float32)
    wrong = [rounded.dequantize() - weight for rounded in (plain, cut)]
    lost = [((each @ hessian) * each).sum(1) for each in wrong]
    assert (lost[1] <= lost[0]).all()
    assert lost[1][1:].sum() < 0.9 * lost[0][1:].sum()
    assert cut.scales.scale[0, 0] == plain.scales.scale[0, 0]


def test_what_queries_and_keys_come_from_is_not_cut() -> None:
    named = {name: takes_clipping(f"self_attn.{name}") for name in ("q_proj", "k_proj", "v_proj", "o_proj")}
    assert named == {"q_proj": False, "k_proj": False, "v_proj": True, "o_proj": True}


def test_smoothquant_halves_what_sticks_out(weight: Tensor, inputs: InputStatistics) -> None:
    factors = smoothquant_factors([weight], inputs)
    spread = inputs.largest.max() / inputs.largest.median()
    smoothed = inputs.largest / factors
    assert smoothed.max() / smoothed.median() < 0.6 * spread
    assert torch.allclose(smoothed, (weight * factors).abs().amax(0), rtol=1e-3)  # the size is shared half and half
    assert torch.allclose(scaled_statistics(inputs, factors).largest, smoothed)


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_folding_changes_nothing_of_what_is_computed(offset: float) -> None:
    tensors = {
        "norm.weight": draw(8, seed=1),
        "a.weight": draw(6, 8, seed=2),
        "b.weight": draw(5, 8, seed=3),
        "up.weight": draw(10, 6, seed=4),
        "up.bias": draw(10, seed=5),
        "down.weight": draw(3, 5, seed=6),
    }
    x, before = draw(4, 8, seed=7), dict(tensors)

    def outputs(named: dict[str, Tensor]) -> list[Tensor]:
        normed = x * (named["norm.weight"] + offset)
        half = (normed @ named["a.weight"].T) @ named["up.weight"].T + named["up.bias"]
        return [normed @ named["b.weight"].T, torch.tanh(half[:, :5]) * half[:, 5:] @ named["down.weight"].T]

    apply_factors(tensors, Fold("norm", ("a", "b"), True, offset), torch.rand(8) + 0.5)
    apply_factors(tensors, Fold("up", ("down",), False), torch.rand(5) + 0.5)
    assert not torch.equal(tensors["a.weight"], before["a.weight"])
    assert not torch.equal(tensors["down.weight"], before["down.weight"])
    for after, was in zip(outputs(tensors), outputs(before), strict=True):
        assert torch.allclose(after, was, atol=1e-4)


def test_folds_are_found_by_name_and_heads_that_are_shared_are_left() -> None:
    width, names = 8, {"input_layernorm.weight": torch.ones(8), "post_attention_layernorm.weight": torch.ones(8)}
    for name, shape in {"self_attn.q_proj": (8, 8), "self_attn.v_proj": (4, 8), "self_attn.o_proj": (8, 8)}.items():
        names[f"{name}.weight"] = torch.ones(shape)
    names |= {"mlp.gate_up_proj.weight": torch.ones(2 * 12, width), "mlp.down_proj.weight": torch.ones(width, 12)}
    found = {fold.source: fold.targets for fold in folds_of(names, gemma=False)}
    assert found == {
        "input_layernorm": ("self_attn.q_proj", "self_attn.v_proj"),
        "post_attention_layernorm": ("mlp.gate_up_proj",),
        "mlp.gate_up_proj": ("mlp.down_proj",),
    }
