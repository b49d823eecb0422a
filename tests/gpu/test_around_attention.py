"""Norms, rotation, gates, gathers, adapters and sampling on a GPU: bfloat16 and float16 at the sizes of real models.

The references run on the CPU: in float64 where sums are compared, as they are where the bits are.
"""

from collections.abc import Callable

import pytest
import torch
from penstock_kernels.activations import gelu_mul, silu_mul
from penstock_kernels.fused_qkv import HeadNorms, norm_rotary_store
from penstock_kernels.gpu import activations as gpu_activations
from penstock_kernels.gpu import fused_qkv as gpu_fused_qkv
from penstock_kernels.gpu import lora as gpu_lora
from penstock_kernels.gpu import rms_norm as gpu_rms_norm
from penstock_kernels.gpu import rotary as gpu_rotary
from penstock_kernels.gpu import rows as gpu_rows
from penstock_kernels.gpu import sampling as gpu_sampling
from penstock_kernels.lora import lora_expand, lora_shrink
from penstock_kernels.rms_norm import rms_norm
from penstock_kernels.rotary import rotary_at
from penstock_kernels.sampling import sample
from torch import Tensor

from tests.kernels.sampling_cases import Rows, rows_of

DTYPES = [torch.bfloat16, torch.float16]
TOKENS = [1, 17, 129, 2048]


def drawn(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape).to(dtype)


def error(got: Tensor, exact: Tensor) -> float:
    """Of the whole, relative; NaN where anything is."""
    return float((got.double().cpu() - exact).norm() / exact.norm())


def rounding(dtype: torch.dtype) -> float:
    """What one rounding of each result costs at most."""
    return float(torch.finfo(dtype).eps) / 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize(("width", "plus_one"), [(4096, False), (2304, True)])
def test_rms_norm_residual(tokens: int, width: int, plus_one: bool, dtype: torch.dtype) -> None:
    x, residual, weight = (drawn(*shape, dtype=dtype) for shape in ((tokens, width), (tokens, width), (width,)))
    total = (x.float() + residual.float()).to(dtype)
    normed, kept = gpu_rms_norm.rms_norm_residual(x.cuda(), residual.cuda(), weight.cuda(), 1e-5, plus_one=plus_one)
    assert torch.equal(kept.cpu(), total)
    assert error(normed, rms_norm(total.double(), weight.double(), 1e-5, plus_one=plus_one)) < rounding(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize(
    ("reference", "kernel"), [(silu_mul, gpu_activations.silu_mul), (gelu_mul, gpu_activations.gelu_mul)]
)
def test_gates(
    reference: Callable[[Tensor], Tensor], kernel: Callable[[Tensor], Tensor], tokens: int, dtype: torch.dtype
) -> None:
    gate_up = drawn(tokens, 2 * 4864, dtype=dtype)
    assert error(kernel(gate_up.cuda()), reference(gate_up.double())) < rounding(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("half", [64, 24])
def test_rotation_and_the_step_before_the_pool(tokens: int, half: int, dtype: torch.dtype) -> None:
    """Alone, and with the norms and the store around it."""
    qkv, positions = drawn(tokens, 48, 128, dtype=dtype), torch.randint(0, 900, (tokens,))
    angles = torch.rand(900, 1, half) * 6
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    turned, rotated = qkv.double(), qkv.cuda()
    rotary_at(turned[..., : 2 * half], positions, cos.double(), sin.double())
    gpu_rotary.rotary_at(rotated[..., : 2 * half], positions.cuda(), cos.cuda(), sin.cuda())
    assert error(rotated, turned) < rounding(dtype)
    norms, slots = [drawn(128, dtype=dtype) for _ in range(2)], torch.randperm(tokens + 5)[:tokens]
    exact, pool = qkv.double(), torch.zeros(tokens + 5, 16, 128, dtype=torch.float64)
    wide = HeadNorms(*(weight.double() for weight in norms), eps=1e-6)
    norm_rotary_store(exact, positions, cos.double(), sin.double(), pool, slots, heads=32, norms=wide)
    got, got_pool = qkv.cuda(), torch.zeros_like(pool, dtype=dtype, device="cuda")
    gpu_fused_qkv.norm_rotary_store(
        got,
        positions.cuda(),
        cos.cuda(),
        sin.cuda(),
        got_pool,
        slots.cuda(),
        heads=32,
        norms=HeadNorms(*(weight.cuda() for weight in norms), eps=1e-6),
    )
    assert error(got[:, :32], exact[:, :32]) < rounding(dtype)
    assert error(got_pool, pool) < rounding(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_taken_bit_for_bit(dtype: torch.dtype) -> None:
    table, indices = drawn(1000, 3000, dtype=dtype), torch.randint(0, 1000, (77,))
    assert torch.equal(gpu_rows.take_rows(table.cuda(), indices.cuda()).cpu(), table[indices])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [8, 24, 64])
@pytest.mark.parametrize("lengths", [[1] * 40, [1, 0, 17, 300], [1500, 548]])
def test_adapters(lengths: list[int], rank: int, dtype: torch.dtype) -> None:
    tokens = sum(lengths) + 2  # two of padding
    starts = torch.tensor([0, *lengths]).cumsum(0).int()
    adapters = (torch.arange(len(lengths)) % 4 - 1).int()
    x, down, up = (drawn(*shape, dtype=dtype) for shape in ((tokens, 1000), (3, rank, 1000), (3, rank, 520)))
    product = drawn(tokens, 600, dtype=dtype)
    exact = product.double()
    shrunk = lora_shrink(x, down, starts, adapters)
    lora_expand(shrunk.double(), up.double(), starts, adapters, exact[:, 40:560])
    got, cut = product.cuda(), (starts.cuda(), adapters.cuda())
    got_shrunk = gpu_lora.lora_shrink(x.cuda(), down.cuda(), *cut)
    gpu_lora.lora_expand(got_shrunk, up.cuda(), *cut, got[:, 40:560])
    assert error(got_shrunk[: tokens - 2], shrunk[: tokens - 2].double()) < 2 * rounding(dtype)
    assert error(got, exact) < 4 * rounding(dtype)
    assert torch.equal(got[tokens - 2 :].cpu(), product[tokens - 2 :])


def fresh(rows: Rows, spread: float) -> Rows:
    """Other logits and seeds at each run, the parameters as they are."""
    seeds = torch.randint(-(2**63), 2**63 - 1, rows.seed.shape)
    return rows._replace(logits=torch.randn(rows.logits.shape) * spread, seed=seeds)


def on_gpu(rows: Rows) -> Tensor:
    return gpu_sampling.sample(**{name: value.cuda() for name, value in rows._asdict().items()}).cpu()


@pytest.mark.parametrize("filters", ["", "m", "k", "p", "kpm"])
@pytest.mark.parametrize(("rows", "vocabulary"), [(2000, 1000), (64, 128_256), (3, 262_208)])
def test_tokens_are_the_definitions_on_a_cpu(rows: int, vocabulary: int, filters: str) -> None:
    """Bit for bit, thousands of draws: the CPU's logits, the GPU's token."""
    given = fresh(rows_of(rows, vocabulary, filters), spread=2.0)
    assert torch.equal(on_gpu(given), sample(**given._asdict()))


def test_flat_rows_are_searched_whole() -> None:
    given = fresh(rows_of(16, 20_000, "kp"), spread=0.05)
    given = given._replace(top_k=given.top_k * 300)
    assert torch.equal(on_gpu(given), sample(**given._asdict()))


def test_a_captured_draw_follows_its_inputs() -> None:
    """One graph, replayed with other logits and positions in the same buffers."""
    first, second = rows_of(32, 5000, "kpm"), rows_of(32, 5000, "kpm", spread=2.0)
    held = {name: value.cuda() for name, value in first._asdict().items()}
    gpu_sampling.sample(**held)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tokens = gpu_sampling.sample(**held)
    held["logits"].copy_(second.logits)
    held["output_index"].add_(1)
    graph.replay()
    expected = sample(**first._replace(logits=second.logits, output_index=first.output_index + 1)._asdict())
    assert torch.equal(tokens.cpu(), expected)
