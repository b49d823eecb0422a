"""Norms, rotation, gates, gathers and the fused step before the pool: as fast as memory, or not worth having."""

from collections.abc import Callable
from functools import partial

import torch
from penstock_kernels import activations, fused_qkv, store_kv
from penstock_kernels.gpu import activations as gpu_activations
from penstock_kernels.gpu import fused_qkv as gpu_fused_qkv
from penstock_kernels.gpu import rms_norm as gpu_rms_norm
from penstock_kernels.gpu import rotary as gpu_rotary
from penstock_kernels.gpu import rows as gpu_rows
from penstock_kernels.gpu import store_kv as gpu_store_kv
from penstock_kernels.rms_norm import rms_norm_residual
from penstock_kernels.rotary import rotary_at
from torch import Tensor

from bench.kernel_parts.contest import Contest, MeasureCase, Sizes

POSITIONS = 8192


def elementwise_cases(sizes: Sizes) -> list[MeasureCase]:
    """Each operation at each number of tokens."""
    makers = (_norm, _gate, _rotary, _fused, _store, _rows)
    return [make(sizes, tokens) for make in makers for tokens in sizes.tokens]


def _case(sizes: Sizes, kernel: str, tokens: int, peer: str, elements: int, make: Callable[[], Contest]) -> MeasureCase:
    return MeasureCase(kernel, f"{tokens} tokens", peer, elements * sizes.element, 0, make)


def _norm(sizes: Sizes, tokens: int) -> MeasureCase:
    def make() -> Contest:
        x, weight = sizes.random(tokens, sizes.hidden), sizes.random(sizes.hidden)
        ours, peers = (sizes.random(tokens, sizes.hidden) for _ in range(2))
        ours.copy_(peers)
        return Contest(
            lambda: gpu_rms_norm.rms_norm_residual(x, ours, weight, 1e-5)[0],
            lambda: rms_norm_residual(x, peers, weight, 1e-5)[0],
        )

    return _case(sizes, "rms_norm_residual", tokens, "add_, F.rms_norm", 4 * tokens * sizes.hidden, make)


def _gate(sizes: Sizes, tokens: int) -> MeasureCase:
    def make() -> Contest:
        gate_up = sizes.random(tokens, 2 * sizes.inner)
        return Contest(lambda: gpu_activations.silu_mul(gate_up), lambda: activations.silu_mul(gate_up))

    return _case(sizes, "silu_mul", tokens, "F.silu, mul_", 3 * tokens * sizes.inner, make)


def _angles(sizes: Sizes) -> tuple[Tensor, Tensor]:
    angle = torch.rand(POSITIONS, 1, sizes.head_dim // 2, device=sizes.device) * 6
    return angle.cos().to(sizes.dtype), angle.sin().to(sizes.dtype)


def _rotary(sizes: Sizes, tokens: int) -> MeasureCase:
    heads = sizes.heads + sizes.kv_heads

    def make() -> Contest:
        ours, positions = sizes.random(tokens, heads, sizes.head_dim), sizes.below(POSITIONS, tokens)
        peers, (cos, sin) = ours.clone(), _angles(sizes)

        def turn(rotate: Callable[..., None], x: Tensor) -> Tensor:
            rotate(x, positions, cos, sin)
            return x

        return Contest(partial(turn, gpu_rotary.rotary_at, ours), partial(turn, rotary_at, peers))

    elements = tokens * sizes.head_dim * (2 * heads + 1)
    return _case(sizes, "rotary_at", tokens, "index_select, addcmul, cat, copy_", elements, make)


def _fused(sizes: Sizes, tokens: int) -> MeasureCase:
    heads, all_heads = sizes.heads, sizes.heads + 2 * sizes.kv_heads

    def make() -> Contest:
        x, positions = sizes.random(tokens, all_heads, sizes.head_dim), sizes.below(POSITIONS, tokens)
        slots, (cos, sin) = torch.randperm(tokens + 16, device=sizes.device)[:tokens], _angles(sizes)
        norms = fused_qkv.HeadNorms(sizes.random(sizes.head_dim), sizes.random(sizes.head_dim), 1e-6)

        def run(step: Callable[..., None], qkv: Tensor, pool: Tensor) -> Tensor:
            step(qkv, positions, cos, sin, pool, slots, heads=heads, norms=norms)
            return pool

        pools = [torch.zeros(tokens + 16, 2 * sizes.kv_heads, sizes.head_dim, device=sizes.device) for _ in range(2)]
        ours, peers = (pool.to(sizes.dtype) for pool in pools)
        return Contest(
            partial(run, gpu_fused_qkv.norm_rotary_store, x.clone(), ours),
            partial(run, fused_qkv.norm_rotary_store, x, peers),
        )

    elements = tokens * sizes.head_dim * (2 * all_heads + 1)
    return _case(sizes, "norm_rotary_store", tokens, "the same in torch, step by step", elements, make)


def _store(sizes: Sizes, tokens: int) -> MeasureCase:
    def make() -> Contest:
        kv = sizes.random(tokens, 2 * sizes.kv_heads, sizes.head_dim)
        slots = torch.randperm(tokens + 16, device=sizes.device)[:tokens]
        ours = torch.zeros(tokens + 16, *kv.shape[1:], dtype=sizes.dtype, device=sizes.device)
        peers = ours.clone()

        def run(store: Callable[..., None], pool: Tensor) -> Tensor:
            store(pool, slots, kv)
            return pool

        return Contest(partial(run, gpu_store_kv.store_kv, ours), partial(run, store_kv, peers))

    elements = 4 * tokens * sizes.kv_heads * sizes.head_dim
    return _case(sizes, "store_kv", tokens, "index_copy_", elements, make)


def _rows(sizes: Sizes, tokens: int) -> MeasureCase:
    def make() -> Contest:
        table, indices = sizes.random(sizes.vocabulary, sizes.hidden), sizes.below(sizes.vocabulary, tokens)
        return Contest(lambda: gpu_rows.take_rows(table, indices), lambda: table.index_select(0, indices))

    return _case(sizes, "take_rows", tokens, "index_select", 2 * tokens * sizes.hidden, make)
