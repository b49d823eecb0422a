"""Attention over the paged pool, and products with quantized weights."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from penstock_kernels.gpu.attention_variants import Variant
from penstock_kernels.gpu.decode_attention import decode_attention
from penstock_kernels.gpu.extend_attention import extend_attention
from penstock_kernels.gpu.quant_matmul_8bit import fp8_matmul, w8a8_matmul
from penstock_kernels.gpu.quant_matmul_w4a16 import w4a16_matmul
from penstock_kernels.gpu.split_k import split_arrivals
from penstock_kernels.kv import quantize_heads
from penstock_kernels.quant_formats import Int4Codes
from penstock_kernels.quant_int4 import pack_int4
from penstock_kernels.quant_matmul import ChannelWeight
from penstock_kernels.quant_rows import quantize_fp8, quantize_int8
from torch import Tensor

from bench.kernel_parts.contest import Contest, MeasureCase, Sizes

PAGE = 16
SOFTCAP = 50.0
GROUP = 128


def attention_cases(sizes: Sizes) -> list[MeasureCase]:
    """Decoding, where bytes decide, and one long prefill, where products do."""
    decode = [_decode(sizes, runs, context) for runs, context in sizes.decoding]
    return decode + [_extend(sizes, tokens) for tokens in sizes.prefill]


def _decode(sizes: Sizes, runs: int, context: int) -> MeasureCase:
    kv = 2 * runs * context * sizes.kv_heads * sizes.head_dim
    ends = 2 * runs * sizes.heads * sizes.head_dim
    return MeasureCase(
        "decode_attention",
        f"{runs} runs of {context}",
        "SDPA over contiguous K and V",
        (kv + ends) * sizes.element,
        4 * runs * context * sizes.heads * sizes.head_dim,
        partial(_attention, sizes, runs, 1, context),
    )


def _extend(sizes: Sizes, tokens: int) -> MeasureCase:
    elements = 2 * tokens * (sizes.kv_heads + sizes.heads) * sizes.head_dim
    return MeasureCase(
        "extend_attention",
        f"1 run of {tokens}",
        "SDPA, causal, over contiguous K and V",
        elements * sizes.element,
        2 * tokens * (tokens + 1) * sizes.heads * sizes.head_dim,  # half of the square
        partial(_attention, sizes, 1, tokens, tokens),
    )


def _attention(sizes: Sizes, runs: int, queries: int, context: int) -> Contest:
    layer = Variant(heads=sizes.heads, kv_heads=sizes.kv_heads, head_dim=sizes.head_dim, dtype=sizes.dtype)
    given = PagedRuns.draw(sizes.device, sizes.dtype, layer, runs, queries, context)
    k, v = given.dense()
    split = given.q.view(runs, queries, sizes.heads, sizes.head_dim).transpose(1, 2)
    attend = decode_attention if queries == 1 else extend_attention

    def peer() -> Tensor:
        answer = F.scaled_dot_product_attention(split, k, v, is_causal=queries > 1, enable_gqa=True)
        return answer.transpose(1, 2).reshape(given.out.shape)

    return Contest(partial(given.answer, attend), peer)


@dataclass(frozen=True)
class PagedRuns:
    """Runs of one length whose pages lie anywhere in the pool, and what a layer asks of them."""

    layer: Variant
    queries: int
    context: int
    q: Tensor
    pool: Tensor
    scales: Tensor | None
    table: Tensor
    starts: Tensor
    lens: Tensor
    out: Tensor

    @classmethod
    def draw(
        cls, device: str, dtype: torch.dtype, layer: Variant, runs: int, queries: int, context: int
    ) -> "PagedRuns":
        pages = -(-context // PAGE)
        kept = torch.randn(runs * pages + 1, PAGE, 2 * layer.kv_heads, layer.head_dim, device=device).to(dtype)
        pool, scales = (kept, None) if layer.pool is None else quantize_heads(kept, layer.pool, torch.float16)
        return cls(
            layer,
            queries,
            context,
            q=torch.randn(runs * queries, layer.heads, layer.head_dim, device=device).to(dtype),
            pool=pool,
            scales=scales,
            table=(1 + torch.randperm(runs * pages, device=device).view(runs, pages)).int(),
            starts=torch.arange(runs + 1, dtype=torch.int32, device=device) * queries,
            lens=torch.full((runs,), context, dtype=torch.int32, device=device),
            out=torch.empty(runs * queries, layer.heads * layer.head_dim, dtype=dtype, device=device),
        )

    def dense(self) -> tuple[Tensor, Tensor]:
        """K and V [runs, kv_heads, context, head_dim], side by side in memory, of a pool that is not quantized."""
        runs, pages = self.table.shape
        heads = self.pool[self.table.long()].view(runs, pages * PAGE, 2, self.layer.kv_heads, self.layer.head_dim)
        k, v = (heads[:, : self.context, at].transpose(1, 2).contiguous() for at in (0, 1))
        return k, v

    def answer(self, attend: Callable[..., None], **options: object) -> Tensor:
        attend(
            self.q,
            self.pool,
            self.table,
            self.starts,
            self.lens,
            self.out,
            scale=self.layer.head_dim**-0.5,
            window=self.context // 2 if self.layer.windowed else None,
            softcap=SOFTCAP if self.layer.capped else None,
            max_query_len=self.queries,
            max_context_len=self.context,
            scales=self.scales,
            **options,
        )
        return self.out


def quantized_cases(sizes: Sizes) -> list[MeasureCase]:
    """One linear layer in each format beside the same layer in the activations' own type."""
    makers: dict[str, tuple[float, str, Callable[[Sizes, int], Contest]]] = {
        "w4a16_matmul": (0.5 + 4 / GROUP, "bfloat16", _w4a16),
        "w8a8_matmul": (1.0, "int8", partial(_by_channel, quantize_int8, w8a8_matmul)),
        "fp8_matmul": (1.0, "fp8", partial(_by_channel, quantize_fp8, fp8_matmul)),
    }
    n, k = sizes.weight
    return [
        MeasureCase(
            kernel,
            f"{rows} rows, {n} x {k}",
            "F.linear, not quantized",
            int(n * k * per_weight) + rows * (n + k) * sizes.element,
            2 * rows * n * k,
            partial(make, sizes, rows),
            arithmetic,
        )
        for kernel, (per_weight, arithmetic, make) in makers.items()
        for rows in sizes.products
    ]


def _w4a16(sizes: Sizes, rows: int) -> Contest:
    n, k = sizes.weight
    codes = torch.randint(0, 16, (n, k), device=sizes.device).to(torch.uint8)
    scales = (torch.rand(n, k // GROUP, device=sizes.device) * 0.01 + 0.001).to(sizes.dtype)
    published = Int4Codes(codes, scales, torch.full((n, k // GROUP), 8, dtype=torch.uint8, device=sizes.device))
    packed, plain, x = pack_int4(published), published.dequantize().to(sizes.dtype), sizes.random(rows, k)
    arrivals = split_arrivals(sizes.device)
    return Contest(lambda: w4a16_matmul(x, packed, arrivals=arrivals), lambda: F.linear(x, plain))


def _by_channel(
    quantize: Callable[[Tensor], tuple[Tensor, Tensor]],
    matmul: Callable[..., Tensor],
    sizes: Sizes,
    rows: int,
) -> Contest:
    n, k = sizes.weight
    plain, x = sizes.random(n, k) * 0.02, sizes.random(rows, k)
    weight = ChannelWeight(*quantize(plain))
    arrivals = split_arrivals(sizes.device)
    return Contest(lambda: matmul(x, weight, arrivals=arrivals), lambda: F.linear(x, plain))
