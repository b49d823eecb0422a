"""Layers over the Triton kernels, put in the place of a finished model's own, from outside.

Products stay with cuBLAS. Between them a layer is five launches: a norm that adds to the residual, the norms of heads
with rotation and store, attention over the pool, the second norm, and the gate.
"""

from collections import Counter
from typing import NamedTuple

import torch
from penstock_kernels.fused_qkv import HeadNorms
from penstock_kernels.gpu.activations import gelu_mul, silu_mul
from penstock_kernels.gpu.decode_attention import decode_attention
from penstock_kernels.gpu.extend_attention import extend_attention
from penstock_kernels.gpu.fused_qkv import norm_rotary_store
from penstock_kernels.gpu.rms_norm import rms_norm, rms_norm_residual
from penstock_kernels.gpu.rows import take_rows
from torch import Tensor, nn

from penstock_engine.forward_batch import ForwardBatch, Runs
from penstock_engine.kv_pool import KVPool
from penstock_engine.layers.feed_forward import FeedForward, SparseFeedForward
from penstock_engine.layers.linear import Embedding, Linear
from penstock_engine.layers.norm import RMSNorm
from penstock_engine.layers.rotary import AngleTables, RotaryEmbedding
from penstock_engine.layers.self_attention import Angles, SelfAttention
from penstock_engine.models.decoder import Decoder, DecoderLM
from penstock_engine.models.gemma import GemmaEmbedding, GemmaNorm

DECODING_ROWS = 16  # heads of a group times queries: what `decode_attention` takes at the price of one query
GATES = {"silu": silu_mul, "gelu_pytorch_tanh": gelu_mul}
PLUS_ONE = {RMSNorm: False, GemmaNorm: True}  # by the kind of a norm: another kind would need a kernel of its own


class RowNorm(nn.Module):
    """`RMSNorm`; with a residual, in one pass."""

    def __init__(self, norm: RMSNorm) -> None:
        super().__init__()
        self.weight, self.eps, self.plus_one = norm.weight, norm.eps, PLUS_ONE[type(norm)]

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps, plus_one=self.plus_one)

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        return rms_norm_residual(x, residual, self.weight, self.eps, plus_one=self.plus_one)


class RowEmbedding(nn.Module):
    """`Embedding`, scaled as it is read where the model's is."""

    def __init__(self, embedding: Embedding) -> None:
        super().__init__()
        self.weight = embedding.weight
        width, scaled = embedding.weight.shape[1], isinstance(embedding, GemmaEmbedding)
        self.scale = torch.tensor(width**0.5, dtype=self.weight.dtype).item() if scaled else 1.0

    def forward(self, ids: Tensor) -> Tensor:
        return take_rows(self.weight, ids, self.scale)


class Reach(NamedTuple):
    """How a layer compares: what both kernels of attention are told besides the runs."""

    scale: float
    window: int | None
    softcap: float | None


class PoolAttention(nn.Module):
    """`SelfAttention` that turns heads on their way into the pool, and attends to it where it lies.

    Takes batches without rows of padding. `deterministic`: one kernel, whose numbers no neighbour changes, for all.
    """

    def __init__(self, attention: SelfAttention, *, deterministic: bool) -> None:
        super().__init__()
        self.qkv_proj, self.o_proj = attention.qkv_proj, attention.o_proj
        self.layer, self.rope = attention.layer, attention.rope
        self.heads, self.head_dim = attention.heads, attention.head_dim
        self.reach = Reach(attention.scores.scale, attention.scores.window, attention.scores.softcap)
        self.norms = _head_norms(attention)
        group = attention.heads // attention.kv_heads
        self.most_decoded = 0 if deterministic else max(1, DECODING_ROWS // group)

    def forward(self, x: Tensor, angles: tuple[Angles, ...], batch: ForwardBatch) -> Tensor:
        qkv = self.qkv_proj(x).view(len(x), -1, self.head_dim)  # [tokens, heads + 2 * kv_heads, head_dim]
        cos, sin = angles[self.rope]
        pool, slots, scales = batch.pool.slots(self.layer), batch.slots, batch.pool.slot_scales(self.layer)
        norm_rotary_store(
            qkv, batch.positions, cos, sin, pool, slots, heads=self.heads, norms=self.norms, scales=scales
        )
        out: Tensor = self.o_proj(self._attend(qkv[:, : self.heads], batch.pool, batch.runs))
        return out

    def _attend(self, q: Tensor, pool: KVPool, runs: Runs) -> Tensor:
        out = torch.empty(len(q), self.heads * self.head_dim, dtype=q.dtype, device=q.device)
        attend = decode_attention if runs.max_query_len <= self.most_decoded else extend_attention
        attend(
            q,
            pool.pages(self.layer),
            runs.page_table,
            runs.query_starts,
            runs.context_lens,
            out,
            scale=self.reach.scale,
            window=self.reach.window,
            softcap=self.reach.softcap,
            max_query_len=runs.max_query_len,
            max_context_len=runs.max_context_len,
            scales=pool.page_scales(self.layer),
        )
        return out


class RowDecoder(nn.Module):
    """`Decoder`, whose last norm reads the rows that are wanted, taken by the kernel."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.embed_tokens, self.layers, self.norm = decoder.embed_tokens, decoder.layers, decoder.norm

    def forward(self, angles: tuple[Angles, ...], batch: ForwardBatch) -> Tensor:
        # Triton launches on the current device, wherever its tensors lie.
        with torch.cuda.device_of(batch.input_ids):  # type: ignore[no-untyped-call]  # torch gives it no types
            return self._run(angles, batch)

    def _run(self, angles: tuple[Angles, ...], batch: ForwardBatch) -> Tensor:
        x = self.embed_tokens(batch.input_ids)
        residual = torch.zeros_like(x)
        for layer in self.layers:
            x, residual = layer(x, residual, angles, batch)
        if batch.sample_at is not None:
            x, residual = take_rows(x, batch.sample_at), take_rows(residual, batch.sample_at)
        normed: Tensor = self.norm.add(x, residual)[0]
        return normed


def use_gpu_kernels(model: DecoderLM, *, deterministic: bool) -> Counter[str]:
    """Put layers over Triton's kernels in the place of `model`'s own; how many of each kind there are now.

    The model is for inference only afterwards, takes batches without padding (`pads` is False), and its steps can be
    recorded where no layer asks the host for anything.
    """
    _visit(model, deterministic)
    model.pads = False
    sparse = any(isinstance(module, SparseFeedForward) for module in model.modules())
    model.unrecordable = "the host must know how many tokens each expert has" if sparse else ""
    return Counter(type(module).__name__ for module in model.modules() if isinstance(module, Linear | PoolAttention))


def _visit(parent: nn.Module, deterministic: bool) -> None:
    for name, child in list(parent.named_children()):
        found = _replaced(child, deterministic)
        if found is not child:
            setattr(parent, name, found)
        _visit(found, deterministic)


def _replaced(layer: nn.Module, deterministic: bool) -> nn.Module:
    match layer:
        case Decoder():
            return RowDecoder(layer)
        case Embedding():
            return RowEmbedding(layer)
        case SelfAttention():
            return PoolAttention(layer, deterministic=deterministic)
        case RMSNorm():
            return RowNorm(layer)
        case RotaryEmbedding():
            return AngleTables(layer)
        case FeedForward():
            layer.gate_mul = GATES[layer.activation]
    return layer


def _head_norms(attention: SelfAttention) -> HeadNorms | None:
    q_norm, k_norm = attention.q_norm, attention.k_norm
    if q_norm is None or k_norm is None:
        return None
    return HeadNorms(q_norm.weight, k_norm.weight, q_norm.eps, PLUS_ONE[type(q_norm)])
