"""Norms, rotation, gates and row gathers in the interpreter, against their torch references; mutants are caught."""

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock_kernels.activations import gelu_mul, silu_mul
from penstock_kernels.checks import DtypeError, ShapeError
from penstock_kernels.fused_qkv import HeadNorms, norm_rotary_store
from penstock_kernels.gpu import activations as gpu_activations
from penstock_kernels.gpu import fused_qkv as gpu_fused_qkv
from penstock_kernels.gpu import rms_norm as gpu_rms_norm
from penstock_kernels.gpu import rotary as gpu_rotary
from penstock_kernels.gpu import rows as gpu_rows
from penstock_kernels.gpu import store_kv as gpu_store_kv
from penstock_kernels.kv import LARGEST
from penstock_kernels.rms_norm import rms_norm, rms_norm_residual
from penstock_kernels.rotary import rotary, rotary_at
from penstock_kernels.rows import take_rows
from torch import Tensor

DTYPES = [torch.float32, torch.float16]
SIZES = [1, 17, 129]
FEW = settings(max_examples=6, deadline=None, derandomize=True)


@pytest.fixture(autouse=True, scope="module")
def poisoned_memory() -> Iterator[None]:
    """What a launcher allocates holds NaN until a kernel writes it."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def close(got: Tensor, exact: Tensor) -> bool:
    """`exact` is float64 arithmetic on the same numbers: what is left is the rounding of the result."""
    bound = 4e-6 if got.dtype == torch.float32 else 2e-3
    return bool(((got.double() - exact).abs() <= bound * (1 + exact.abs())).all())


# rms_norm


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", SIZES)
@pytest.mark.parametrize("plus_one", [False, True])
def test_rms_norm(tokens: int, dtype: torch.dtype, plus_one: bool) -> None:
    x, weight = random(tokens, 33, dtype=dtype), random(33, dtype=dtype)
    got = gpu_rms_norm.rms_norm(x, weight, 1e-5, plus_one=plus_one)
    assert got.dtype == dtype
    assert close(got, rms_norm(x.double(), weight.double(), 1e-5, plus_one=plus_one))


@FEW
@given(tokens=st.integers(1, 5), width=st.integers(1, 300))
def test_rms_norm_residual_writes_the_sum_and_its_norm(tokens: int, width: int) -> None:
    x, weight = random(tokens, width + 3)[:, :width], random(width)
    residual, beyond = random(tokens, width + 7)[:, :width], random(tokens, width + 7)[:, width:].clone()
    total = residual.double() + x.double()
    normed, kept = gpu_rms_norm.rms_norm_residual(x, residual, weight, 1e-6)
    assert kept.data_ptr() == residual.data_ptr()
    assert close(kept, total)
    assert close(normed, rms_norm(total.float().double(), weight.double(), 1e-6))
    assert torch.equal(residual.as_strided((tokens, 7), (width + 7, 1), width), beyond)


def test_rms_norm_of_the_heads_of_a_wider_product() -> None:
    qkv, weight = random(5, 7, 24), random(24)
    heads = qkv[:, 2:5]
    assert close(gpu_rms_norm.rms_norm(heads, weight, 1e-5), rms_norm(heads.double(), weight.double(), 1e-5))


def test_residual_is_rounded_before_it_is_normalised() -> None:
    """As the reference does: in float16, 2048 + 1 is 2048, and the norm is of that."""
    x, residual, weight = torch.ones(1, 8).half(), torch.full((1, 8), 2048.0).half(), torch.ones(8).half()
    expected, kept = rms_norm_residual(x, residual.clone(), weight, 1e-6)
    normed, got = gpu_rms_norm.rms_norm_residual(x, residual, weight, 1e-6)
    assert torch.equal(got, kept)
    assert torch.equal(normed, expected)


WRONG_NORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "the mean is subtracted": lambda x, w: rms_norm(x - x.mean(-1, keepdim=True), w, 1e-5),
    "eps outside the root": lambda x, w: x / (x.pow(2).mean(-1, keepdim=True).sqrt() + 1e-5) * w,
    "a sum for the mean": lambda x, w: x / (x.pow(2).sum(-1, keepdim=True) + 1e-5).sqrt() * w,
    "weight shifted by one": lambda x, w: rms_norm(x, w.roll(1), 1e-5),
    "one is added": lambda x, w: rms_norm(x, w, 1e-5, plus_one=True),
}


@pytest.mark.parametrize("name", WRONG_NORMS)
def test_a_wrong_norm_is_caught(name: str) -> None:
    x, weight = random(17, 33) * 0.05, random(33)
    got = gpu_rms_norm.rms_norm(x, weight, 1e-5)
    assert close(got, rms_norm(x.double(), weight.double(), 1e-5))
    assert not close(got, WRONG_NORMS[name](x.double(), weight.double()))


# activations


GATES = [(silu_mul, gpu_activations.silu_mul), (gelu_mul, gpu_activations.gelu_mul)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", SIZES)
@pytest.mark.parametrize(("reference", "kernel"), GATES)
def test_gates(
    reference: Callable[[Tensor], Tensor], kernel: Callable[[Tensor], Tensor], tokens: int, dtype: torch.dtype
) -> None:
    gate_up = random(tokens, 2 * 33, dtype=dtype)
    assert close(kernel(gate_up), reference(gate_up.double()))


@FEW
@given(tokens=st.integers(1, 3), width=st.integers(1, 2100), gate=st.sampled_from(GATES))
def test_gates_of_any_width(
    tokens: int, width: int, gate: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]
) -> None:
    gate_up = random(tokens, 2 * width + 5)[:, : 2 * width]
    reference, kernel = gate
    assert close(kernel(gate_up), reference(gate_up.double()))


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # numpy says so; the infinity is what is meant
def test_gates_far_out_are_finite() -> None:
    gate_up = torch.tensor([[-60000.0, 60000.0, 0.0, 1.0, 1.0, 1.0]]).half()
    for reference, kernel in GATES:
        assert torch.equal(kernel(gate_up), reference(gate_up.double()).half())


def test_wrong_gates_are_caught() -> None:
    gate_up = random(5, 66)
    swapped = torch.cat((gate_up[:, 33:], gate_up[:, :33]), -1).double()
    for (right, kernel), (other, _) in (GATES, GATES[::-1]):
        assert not close(kernel(gate_up), right(swapped))
        assert not close(kernel(gate_up), other(gate_up.double()))


# rotary


def angles(positions: int, half: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    turns = torch.arange(positions).unsqueeze(1) * 10000.0 ** -(torch.arange(half) / half)
    return turns.cos().unsqueeze(1).to(dtype), turns.sin().unsqueeze(1).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", SIZES)
def test_rotary_at_positions(tokens: int, dtype: torch.dtype) -> None:
    """Heads and dimensions outside the view stay; positions index the tables."""
    qkv = random(tokens, 7, 12, dtype=dtype)
    positions = torch.randint(0, 50, (tokens,), generator=torch.Generator().manual_seed(1))
    cos, sin = angles(50, 4, dtype)
    expected = qkv.double()
    rotary_at(expected[:, :5, :8], positions, cos.double(), sin.double())
    gpu_rotary.rotary_at(qkv[:, :5, :8], positions, cos, sin)
    assert close(qkv, expected)
    assert torch.equal(qkv[:, 5:], random(tokens, 7, 12, dtype=dtype)[:, 5:])


@FEW
@given(tokens=st.integers(1, 4), heads=st.integers(1, 9), half=st.integers(1, 70))
def test_rotary_by_each_tokens_angles(tokens: int, heads: int, half: int) -> None:
    x = random(tokens, heads, 2 * half)
    cos, sin = (table[3:] for table in angles(3 + tokens, half))
    expected = x.double()
    rotary(expected, cos.double(), sin.double())
    gpu_rotary.rotary(x, cos, sin)
    assert close(x, expected)


def test_wrong_rotations_are_caught() -> None:
    x, positions, (cos, sin) = random(9, 3, 16), torch.arange(9) * 3, angles(40, 8)
    got = x.clone()
    gpu_rotary.rotary_at(got, positions, cos, sin)
    interleaved = x.double()
    evens = interleaved.view(9, 3, 8, 2).transpose(2, 3).reshape(9, 3, 16)
    rotary_at(evens, positions, cos.double(), sin.double())
    for wrong_positions, wrong_cos, wrong_sin in [
        (positions + 1, cos, sin),
        (positions, cos, -sin),
        (positions, sin, cos),
        (positions, cos.flip(-1), sin.flip(-1)),
    ]:
        expected = x.double()
        rotary_at(expected, wrong_positions, wrong_cos.double(), wrong_sin.double())
        assert not close(got, expected)
    assert not close(got, evens.view(9, 3, 2, 8).transpose(2, 3).reshape(9, 3, 16))


# norms, rotation and store in one


def fused_case(
    tokens: int, *, rotated: int, norms: bool, dtype: torch.dtype
) -> tuple[dict[str, object], Tensor, Tensor]:
    """(arguments but qkv and pool, qkv, pool): 3 query heads, 2 of K and V; the last token's slot is missing."""
    head_dim = 16
    cos, sin = angles(40, rotated // 2, dtype)
    generator = torch.Generator().manual_seed(tokens)
    weights = HeadNorms(random(head_dim, dtype=dtype), random(1, head_dim, dtype=dtype)[0], 1e-6, plus_one=tokens == 17)
    arguments: dict[str, object] = {
        "positions": torch.randint(0, 40, (tokens,), generator=generator),
        "slots": torch.randperm(tokens + 9, generator=generator)[: max(tokens - 1, 1)],
        "heads": 3,
        "norms": weights if norms else None,
        "cos": cos,
        "sin": sin,
    }
    pool = torch.full((tokens + 9, 4, head_dim), torch.nan, dtype=dtype)
    return arguments, random(tokens, 7, head_dim, dtype=dtype), pool


def exactly(arguments: dict[str, object], qkv: Tensor, pool: Tensor) -> tuple[Tensor, Tensor]:
    """The reference in float64."""
    norms = arguments["norms"]
    wide = {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in arguments.items()
    }
    if isinstance(norms, HeadNorms):
        wide["norms"] = norms._replace(q_weight=norms.q_weight.double(), k_weight=norms.k_weight.double())
    q, pool = qkv.double(), pool.double()
    norm_rotary_store(q, pool=pool, **wide)  # type: ignore[arg-type]
    return q[:, :3], pool


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 17])
@pytest.mark.parametrize(("rotated", "norms"), [(16, False), (16, True), (8, True), (10, False)])
def test_norm_rotary_store(tokens: int, rotated: int, norms: bool, dtype: torch.dtype) -> None:
    arguments, qkv, pool = fused_case(tokens, rotated=rotated, norms=norms, dtype=dtype)
    q, expected = exactly(arguments, qkv, pool)
    gpu_fused_qkv.norm_rotary_store(qkv, pool=pool, **arguments)  # type: ignore[arg-type]
    assert close(qkv[:, :3], q)
    written = expected.isfinite()
    assert torch.equal(pool.isfinite(), written)
    assert close(pool[written], expected[written])


@pytest.mark.filterwarnings("ignore:invalid value")  # of numpy, in which the interpreter multiplies infinity by zero
@pytest.mark.parametrize("pool_dtype", LARGEST)
@pytest.mark.parametrize(("rotated", "norms", "dtype"), [(16, True, torch.float32), (10, False, torch.float16)])
def test_norm_rotary_store_in_8_bits(rotated: int, norms: bool, dtype: torch.dtype, pool_dtype: torch.dtype) -> None:
    """Bit for bit what is stored of the heads that it stores where nothing is rounded; one that broke, and zeros."""
    arguments, qkv, plain = fused_case(17, rotated=rotated, norms=norms, dtype=dtype)
    qkv[3, 4, 1], qkv[5, 3:] = torch.inf, 0
    whole = qkv.clone()
    gpu_fused_qkv.norm_rotary_store(whole, pool=plain, **arguments)  # type: ignore[arg-type]
    pool = torch.full(plain.shape, 7.0).to(pool_dtype)
    scales = torch.full(plain.shape[:2], 3.0).half()
    expected, expected_scales = pool.clone(), scales.clone()
    slots = arguments["slots"]
    assert isinstance(slots, Tensor)
    gpu_store_kv.store_kv(expected, slots, plain[slots], expected_scales)
    gpu_fused_qkv.norm_rotary_store(qkv, pool=pool, scales=scales, **arguments)  # type: ignore[arg-type]
    assert torch.equal(pool.view(torch.uint8), expected.view(torch.uint8))
    torch.testing.assert_close(scales, expected_scales, rtol=0, atol=0, equal_nan=True)
    assert scales.isnan().sum() == 1
    torch.testing.assert_close(qkv[:, :3], whole[:, :3], rtol=0, atol=0, equal_nan=True)


def test_wrong_fusions_are_caught() -> None:
    arguments, qkv, pool = fused_case(9, rotated=8, norms=True, dtype=torch.float32)
    norms, slots = arguments["norms"], arguments["slots"]
    assert isinstance(norms, HeadNorms)
    assert isinstance(slots, Tensor)
    got_q, got_pool = qkv.clone(), pool.clone()
    gpu_fused_qkv.norm_rotary_store(got_q, pool=got_pool, **arguments)  # type: ignore[arg-type]
    swapped = {"norms": norms._replace(q_weight=norms.k_weight, k_weight=norms.q_weight)}
    for change in (swapped, {"norms": norms._replace(plus_one=True)}, {"slots": slots.flip(0)}, {"norms": None}):
        q, expected = exactly(arguments | change, qkv, pool)
        same_q = close(got_q[:, :3], q)
        same_pool = close(got_pool.nan_to_num(7.0), expected.nan_to_num(7.0))
        assert not (same_q and same_pool), change


# rows


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("scale", [1.0, 5.75])
def test_take_rows(count: int, dtype: torch.dtype, scale: float) -> None:
    table = random(40, 37, dtype=dtype)[:, :33]
    indices = torch.randint(0, 40, (count,), generator=torch.Generator().manual_seed(count))
    assert torch.equal(gpu_rows.take_rows(table, indices, scale), take_rows(table, indices, scale))


def test_take_rows_of_more_than_one_tile_by_short_indices() -> None:
    table, indices = random(6, 2100), torch.tensor([5, 0, 5], dtype=torch.int32)
    assert torch.equal(gpu_rows.take_rows(table, indices), table[indices.long()])


# what is refused


def test_arguments_that_would_read_other_memory_are_refused_by_name() -> None:
    x, weight = random(4, 32), random(32)
    with pytest.raises(ShapeError, match=r"weight is \[31\] and should be \[32\]"):
        gpu_rms_norm.rms_norm(x, weight[:31], 1e-5)
    with pytest.raises(ShapeError, match="x has strides"):
        gpu_rms_norm.rms_norm(x.T, random(4), 1e-5)
    with pytest.raises(DtypeError, match="residual is float16 and should be float32"):
        gpu_rms_norm.rms_norm_residual(x, x.half(), weight, 1e-5)
    with pytest.raises(ShapeError, match="gate_up is 31 wide"):
        gpu_activations.silu_mul(x[:, :31])
    with pytest.raises(DtypeError, match="gate_up is int64"):
        gpu_activations.gelu_mul(torch.ones(2, 4, dtype=torch.int64))
    cos, sin = angles(4, 4)
    with pytest.raises(ShapeError, match="should have 8, twice the tables' width"):
        gpu_rotary.rotary(random(4, 2, 10), cos, sin)
    with pytest.raises(ShapeError, match=r"positions is \[3\]"):
        gpu_rotary.rotary_at(random(4, 2, 8), torch.arange(3), cos, sin)
    with pytest.raises(DtypeError, match="indices is float32"):
        gpu_rows.take_rows(x, weight)


def test_a_pool_of_other_heads_or_type_is_refused() -> None:
    arguments, qkv, pool = fused_case(4, rotated=8, norms=True, dtype=torch.float32)
    for change, error in (
        ({"pool": pool[:, :3]}, ShapeError),
        ({"pool": pool.half()}, DtypeError),
        ({"pool": pool, "scales": torch.zeros(len(pool), 4)}, DtypeError),
        ({"pool": pool.to(torch.int8), "scales": torch.zeros(len(pool), 2)}, ShapeError),
        ({"pool": pool, "heads": 4}, ShapeError),
        ({"pool": pool, "slots": torch.arange(5)}, ShapeError),
    ):
        with pytest.raises(error):
            gpu_fused_qkv.norm_rotary_store(qkv, **(arguments | change))  # type: ignore[arg-type]
