"""Layers over the compiled CPU kernels, put in the place of a finished model's own, from outside.

What one layer hands to the next lies in buffers that every step uses again: an answer is good until the next layer of
the same kind runs.
"""

from collections import Counter
from dataclasses import dataclass

import numba
import torch
from penstock_kernels.checks import ShapeError
from penstock_kernels.cpu.attention import scratch_bytes
from penstock_kernels.cpu.packing import GATES, Int8, Packed, Plain
from penstock_kernels.cpu.packing_e4m3 import Float8
from penstock_kernels.cpu.packing_few_bits import GROUP, FewBits
from penstock_kernels.cpu.rounding import AS_IS, E4M3, INT8
from penstock_kernels.cpu.workspace import ATTEND, NORM, TURN, Places, Program, Workspace
from penstock_kernels.quant_formats import Int4Codes
from penstock_kernels.quant_matmul import BlockWeight
from torch import Tensor, nn

from penstock_engine.errors import ModelUnsupported
from penstock_engine.forward_batch import ForwardBatch
from penstock_engine.layers.feed_forward import FeedForward
from penstock_engine.layers.linear import Linear
from penstock_engine.layers.norm import RMSNorm
from penstock_engine.layers.rotary import AngleTables, RotaryEmbedding
from penstock_engine.layers.self_attention import Angles, SelfAttention
from penstock_engine.models.decoder import DecoderLayer, DecoderLM

FINE = {"gate"}  # products that stay as they are in a quantized model: a router decides by small differences
HEAD = "lm_head"  # at 4 bits it would cost more quality than it saves time: it gets 8
SERVED = "layers of multiples of 4 inputs, and groups of multiples of 8, evenly shared"
KEPT = {torch.int8: INT8, torch.float8_e4m3fn: E4M3}  # how attention reads a pool of a type; any other as it is
RECORDED_ROWS = 256  # a step of more is long enough for Python not to show


@dataclass(frozen=True, slots=True)
class Workshop:
    """What the layers of one model share."""

    dtype: torch.dtype
    threads: int
    quantization: str | None
    space: Workspace

    def pack(self, linear: Linear, name: str, gate: str | None = None) -> Packed | None:
        """None for a shape that the kernels do not take. Raises ModelUnsupported for stored weights that none takes."""
        if linear.stored:
            return self._pack_stored(linear, gate)
        weight, bias = linear.weight.detach(), linear.bias
        columns, quantization = weight.shape[1], None if name in FINE else self.quantization
        if quantization == "int4" and name != HEAD and columns % GROUP == 0:
            return FewBits(weight, bias, gate=gate, space=self.space)
        if quantization == "fp8" and name != HEAD:
            return Float8(weight, bias, gate=gate, space=self.space)
        if quantization is not None and columns % 4 == 0:
            return Int8(weight, bias, gate=gate, space=self.space)
        return Plain(weight, bias, gate=gate, space=self.space) if columns * weight.itemsize % 4 == 0 else None

    def _pack_stored(self, linear: Linear, gate: str | None) -> Packed:
        weight, bias = linear.rounded(), linear.bias
        try:
            if isinstance(weight, Int4Codes):
                return FewBits(weight, bias, gate=gate, space=self.space)
            if isinstance(weight, BlockWeight) or weight.codes.dtype == torch.float8_e4m3fn:
                return Float8(weight, bias, gate=gate, space=self.space)
            return Int8(weight, bias, gate=gate, space=self.space)
        except ShapeError as error:
            part = linear.stored[0]
            raise ModelUnsupported(part.path, f"{part.name}: {error}", f"on a CPU this engine runs {SERVED}") from None


class PackedLinear(nn.Module):
    """`Linear` over packed weights. Its answer lies in the buffer of its name."""

    def __init__(self, packed: Packed, name: str, shop: Workshop, dtype: torch.dtype) -> None:
        super().__init__()
        self.packed, self._name, self._take, self._dtype = packed, name, shop.space.take, dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.packed(x, self._take(self._name, len(x), self.packed.shape.width, self._dtype))


class PackedFeedForward(nn.Module):
    """`FeedForward`, whose gate is applied as the products leave their registers."""

    def __init__(self, gate_up: PackedLinear, down: nn.Module) -> None:
        super().__init__()
        self.gate_up_proj, self.down_proj = gate_up, down

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(self.gate_up_proj(x))
        return out


class RowNorm(nn.Module):
    """`RMSNorm`, of any kind."""

    def __init__(self, norm: RMSNorm, shop: Workshop) -> None:
        super().__init__()
        self.weight = norm.factors().contiguous()
        width = len(self.weight)
        self.numbers = torch.tensor([norm.eps, 1 / width])
        self._width, self._space, self._dtype = width, shop.space, shop.dtype

    def forward(self, x: Tensor) -> Tensor:
        return self._run(x, None)

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        return self._run(x, residual), residual

    def _run(self, x: Tensor, residual: Tensor | None) -> Tensor:
        size, out = x.itemsize, self._space.take("normed", len(x), self._width, self._dtype)
        self._space.launch(
            NORM,
            size,
            len(x),
            self._width,
            x.data_ptr(),
            x.stride(0) * size,
            0 if residual is None else residual.data_ptr(),
            self.weight.data_ptr(),
            self.numbers.data_ptr(),
            out.data_ptr(),
        )
        return out


class PoolAttention(nn.Module):
    """`SelfAttention` that turns heads on their way into the pool, and attends to it where it lies."""

    def __init__(self, attention: SelfAttention, shop: Workshop) -> None:
        super().__init__()
        self.qkv_proj, self.o_proj = attention.qkv_proj, attention.o_proj
        self.layer, self.rope, self._shop = attention.layer, attention.rope, shop
        self.heads, self.kv_heads, self.head_dim = attention.heads, attention.kv_heads, attention.head_dim
        self.pairs = attention.turned // 2
        scores = attention.scores
        self.window, self.capped = scores.window or 0, int(scores.softcap is not None)
        self.score_numbers = torch.tensor([scores.scale, scores.softcap or 0.0])
        q_norm, k_norm = attention.q_norm, attention.k_norm
        ones = torch.ones(self.head_dim)
        self.q_weight = ones if q_norm is None else q_norm.factors().contiguous()
        self.k_weight = ones if k_norm is None else k_norm.factors().contiguous()
        self.normed = int(q_norm is not None)
        self.norm_numbers = torch.tensor([q_norm.eps if q_norm is not None else 0.0, 1 / self.head_dim])

    def forward(self, x: Tensor, angles: tuple[Angles, ...], batch: ForwardBatch) -> Tensor:
        qkv = self.qkv_proj(x)
        pool = batch.pool.slots(self.layer)
        kept, scales = KEPT.get(pool.dtype, AS_IS), batch.pool.slot_scales(self.layer)
        places = pool.data_ptr(), kept, 0 if scales is None else scales.data_ptr()
        cos, sin = angles[self.rope]
        self._shop.space.launch(
            TURN,
            qkv.itemsize,
            self.heads,
            self.kv_heads,
            self.head_dim,
            self.pairs,
            qkv.data_ptr(),
            self.normed,
            self.q_weight.data_ptr(),
            self.k_weight.data_ptr(),
            self.norm_numbers.data_ptr(),
            cos.data_ptr(),
            sin.data_ptr(),
            *places,
        )
        out: Tensor = self.o_proj(self._attend(qkv, places, batch.pool.page_size, batch.tokens.context))
        return out

    def _attend(self, qkv: Tensor, places: tuple[int, int, int], page_size: int, context: int) -> Tensor:
        shop, size = self._shop, qkv.itemsize
        pool, kept, scales = places
        out = shop.space.take("attended", len(qkv), self.heads * self.head_dim, shop.dtype)
        floats = scratch_bytes(self.heads, self.kv_heads, self.head_dim, context) // 4
        scratch = shop.space.take("scores", shop.threads, floats, torch.float32)
        shop.space.launch(
            ATTEND,
            shop.threads,
            size,
            self.heads,
            self.kv_heads,
            self.head_dim,
            qkv.data_ptr(),
            qkv.stride(0) * size,
            pool,
            page_size,
            self.window,
            self.capped,
            self.score_numbers.data_ptr(),
            scratch.data_ptr(),
            context,
            out.data_ptr(),
            out.stride(0) * size,
            kept,
            scales,
        )
        return out


class LayerStack(nn.Module):
    """All blocks of a decoder as one. A small step of a shape seen before runs as a program, without Python between."""

    def __init__(self, layers: nn.ModuleList, space: Workspace) -> None:
        super().__init__()
        self.layers, self._space = layers, space
        self._whole = all(isinstance(module, LAUNCHED) for layer in layers for module in layer.modules())
        self._programs: dict[tuple[int, ...], tuple[Program, Tensor, Tensor]] = {}
        self._generation = 0

    def forward(
        self, x: Tensor, residual: Tensor, angles: tuple[Angles, ...], batch: ForwardBatch
    ) -> tuple[Tensor, Tensor]:
        self._space.place(Places(*batch.tokens[:4]))
        rows, width = x.shape
        if rows > RECORDED_ROWS or not self._whole:
            return self._run(x, residual, angles, batch)
        x = self._space.take("embedded", rows, width, x.dtype).copy_(x)
        residual = self._space.take("residual", rows, width, x.dtype).copy_(residual)
        shape = (rows, batch.tokens.context, batch.pool.slots(0).data_ptr())
        if self._generation != self._space.generation:
            self._programs.clear()
        known = self._programs.get(shape)
        if known is None:
            return self._record(shape, x, residual, angles, batch)
        program, x, residual = known
        self._space.run(program)
        return x, residual

    def _record(
        self, shape: tuple[int, ...], x: Tensor, residual: Tensor, angles: tuple[Angles, ...], batch: ForwardBatch
    ) -> tuple[Tensor, Tensor]:
        with self._space.recorded() as programs:
            x, residual = self._run(x, residual, angles, batch)
        if self._generation == self._space.generation:
            self._programs[shape] = programs[0], x, residual
        self._generation = self._space.generation
        return x, residual

    def _run(
        self, x: Tensor, residual: Tensor, angles: tuple[Angles, ...], batch: ForwardBatch
    ) -> tuple[Tensor, Tensor]:
        for layer in self.layers:
            x, residual = layer(x, residual, angles, batch)
        return x, residual


LAUNCHED = (DecoderLayer, PackedFeedForward, PackedLinear, PoolAttention, RowNorm)  # that do nothing but launch kernels


def use_cpu_kernels(model: DecoderLM, *, dtype: torch.dtype, threads: int, quantization: str | None) -> Counter[str]:
    """Put compiled layers in the place of `model`'s own; how many of each kind there are now.

    The model is for inference only afterwards. A layer of a shape that the kernels do not take stays.
    """
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    torch.set_num_threads(threads)  # again: as numba starts its own, it sets OpenMP's to all there are, torch's too
    shop = Workshop(dtype, threads, quantization, Workspace())
    _visit(model, shop)
    model.model.layers = nn.ModuleList([LayerStack(model.model.layers, shop.space)])
    return Counter(
        _kind(module) for module in model.modules() if isinstance(module, Linear | PackedLinear | PoolAttention)
    )


def held_bytes(model: nn.Module) -> Counter[str]:
    """Bytes of memory that the weights of `model`'s packed layers take, by kind: codes, scales and zeros."""
    held: Counter[str] = Counter()
    for module in model.modules():
        if isinstance(module, PackedLinear):
            held[module.packed.kind] += module.packed.held_bytes
    return held


def _visit(parent: nn.Module, shop: Workshop) -> None:
    for name, child in list(parent.named_children()):
        found = _compiled(child, name, shop)
        if found is not None:
            setattr(parent, name, found)
        _visit(found or child, shop)


def _compiled(layer: nn.Module, name: str, shop: Workshop) -> nn.Module | None:
    match layer:
        case Linear():
            return _linear(layer, name, shop)
        case FeedForward():
            return _feed_forward(layer, shop)
        case SelfAttention():
            return PoolAttention(layer, shop)
        case RMSNorm():
            return RowNorm(layer, shop)
        case RotaryEmbedding():
            return AngleTables(layer)
    return None


def _linear(linear: Linear, name: str, shop: Workshop) -> PackedLinear | None:
    packed = shop.pack(linear, name)
    # Logits leave in float32, as they are looked at.
    return PackedLinear(packed, name, shop, torch.float32 if name == HEAD else shop.dtype) if packed else None


def _feed_forward(block: FeedForward, shop: Workshop) -> PackedFeedForward | None:
    gate = block.activation if block.activation in GATES else None
    packed = gate and shop.pack(block.gate_up_proj, "gate_up_proj", gate)
    return PackedFeedForward(PackedLinear(packed, "gated", shop, shop.dtype), block.down_proj) if packed else None


def _kind(layer: nn.Module) -> str:
    return layer.packed.kind if isinstance(layer, PackedLinear) else type(layer).__name__
