"""Each operation against its formula, written out anew; odd sizes included."""

import pytest
import torch
from penstock_kernels import rms_norm, rms_norm_residual, rotary, silu_mul, store_kv


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("tokens", [1, 17, 129])
def test_rms_norm(tokens: int) -> None:
    x, weight = random(tokens, 33), random(33)
    expected = x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight
    torch.testing.assert_close(rms_norm(x, weight, 1e-5), expected)


def test_rms_norm_residual_keeps_the_sum_in_the_residual() -> None:
    x, residual, weight = random(5, 33), random(7, 33)[:5].clone(), random(33)
    total = x + residual
    normed, kept = rms_norm_residual(x, residual, weight, 1e-5)
    torch.testing.assert_close(normed, rms_norm(total, weight, 1e-5))
    torch.testing.assert_close(kept, total)
    assert kept.data_ptr() == residual.data_ptr()


@pytest.mark.parametrize("tokens", [1, 17])
def test_rotary_turns_pairs_as_complex_numbers(tokens: int) -> None:
    """Dimensions i and i + half are one complex number, turned by the token's angle; other heads stay."""
    heads, half = 3, 4
    qkv, angles = random(tokens, heads + 1, 2 * half), random(tokens, 1, half)
    x = qkv[:, :heads]
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angles), angles)
    expected = torch.cat((turned.real, turned.imag), dim=-1)
    untouched = qkv[:, heads:].clone()
    rotary(x, angles.cos(), angles.sin())
    torch.testing.assert_close(qkv[:, :heads], expected)
    assert torch.equal(qkv[:, heads:], untouched)


def test_silu_mul_takes_the_gate_first() -> None:
    gate, up = random(17, 9), random(17, 5).repeat(1, 2)[:, :9]
    expected = gate * torch.sigmoid(gate) * up
    torch.testing.assert_close(silu_mul(torch.cat((gate, up), dim=-1)), expected)


def test_store_kv_writes_its_slots_and_no_other() -> None:
    pool, kv = torch.zeros(12, 4, 6), random(3, 4, 6)
    slots = torch.tensor([7, 2, 11])
    store_kv(pool, slots, kv)
    assert torch.equal(pool[slots], kv)
    others = [slot for slot in range(12) if slot not in slots.tolist()]
    assert not pool[others].any()
