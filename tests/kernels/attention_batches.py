"""Ragged batches for the attention kernels, on a pool in which everything that nobody may look at is poison."""

from dataclasses import dataclass, field
from typing import Any

import torch
from penstock_kernels.attention import paged_attention
from penstock_kernels.kv import dequantize_heads, quantize_heads
from torch import Tensor

POISON_PAGE = 0
SPARE_ROWS = 2  # of q and out, behind the last run

Run = tuple[int, int]  # queries, tokens of context; a context of 0 is padding


@dataclass(frozen=True)
class Batch:
    q: Tensor
    pool: Tensor
    page_table: Tensor
    query_starts: Tensor
    context_lens: Tensor
    scales: Tensor | None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def arguments(self) -> tuple[Tensor, ...]:
        return self.q, self.pool, self.page_table, self.query_starts, self.context_lens

    @property
    def bounds(self) -> dict[str, int]:
        lens = self.query_starts.diff()
        return {"max_query_len": int(lens.max()), "max_context_len": int(self.context_lens.max())}

    def answer(self, kernel: Any, **options: Any) -> Tensor:
        """What `kernel` makes of this batch, in a buffer that held NaN."""
        tokens, heads, head_dim = self.q.shape
        out = torch.full((tokens, heads * head_dim), torch.nan, dtype=self.q.dtype, device=self.q.device)
        kernel(*self.arguments, out, **{**self.options, **self.bounds, "scales": self.scales, **options})
        return out

    def exact(self, **options: Any) -> Tensor:
        """The reference in float64, on the numbers that the pool stands for."""
        pool = self.pool if self.scales is None else dequantize_heads(self.pool, self.scales)
        tokens, heads, head_dim = self.q.shape
        out = torch.full((tokens, heads * head_dim), torch.nan, dtype=torch.float64, device=self.q.device)
        paged_attention(
            self.q.double(),
            pool.double(),
            *self.arguments[2:],
            out,
            **{**self.options, **self.bounds, **options},
        )
        return out


def make_batch(
    runs: list[Run],
    *,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 16,
    dtype: torch.dtype = torch.float32,
    pool_dtype: torch.dtype | None = None,
    page_size: int = 4,
    seed: int = 0,
    device: str = "cpu",
    window: int | None = None,
    softcap: float | None = None,
) -> Batch:
    """Random numbers; the pages of a run lie anywhere, and Q is a view into rows that hold K and V too."""
    drawn = torch.Generator().manual_seed(seed)
    tokens = sum(queries for queries, _ in runs)
    rows = torch.randn(tokens + SPARE_ROWS, heads + 2 * kv_heads, head_dim, generator=drawn)
    context_lens = torch.tensor([context for _, context in runs], dtype=torch.int32)
    table = _page_table(context_lens, page_size, drawn)
    pool = _pool(table, context_lens, page_size, (2 * kv_heads, head_dim), drawn)
    pool, scales = _kept(pool.to(dtype), pool_dtype)
    return Batch(
        q=rows.to(device, dtype)[:, :heads],
        pool=pool.to(device),
        page_table=table.to(device),
        query_starts=torch.tensor([0, *[queries for queries, _ in runs]]).cumsum(0).to(device, torch.int32),
        context_lens=context_lens.to(device),
        scales=None if scales is None else scales.to(device),
        options={"scale": head_dim**-0.5, "window": window, "softcap": softcap},
    )


def _page_table(context_lens: Tensor, page_size: int, drawn: torch.Generator) -> Tensor:
    counts = [-(-context // page_size) for context in context_lens.tolist()]
    pages = torch.randperm(sum(counts), generator=drawn).int() + 1
    table = torch.full((len(counts), max(counts) + 1), POISON_PAGE, dtype=torch.int32)
    for run, part in enumerate(pages.split(counts)):
        table[run, : len(part)] = part
    return table


def _pool(table: Tensor, context_lens: Tensor, page_size: int, slot: tuple[int, int], drawn: torch.Generator) -> Tensor:
    """Pages up to the last that is used and one more; NaN wherever no token of a context lies."""
    pool = torch.full((int(table.max()) + 2, page_size, *slot), torch.nan)
    for run, context in enumerate(context_lens.tolist()):
        pages = table[run, : -(-context // page_size)].long()
        held = torch.full((len(pages) * page_size, *slot), torch.nan)
        held[:context] = torch.randn(context, *slot, generator=drawn)
        pool[pages] = held.view(len(pages), page_size, *slot)
    return pool


def _kept(pool: Tensor, dtype: torch.dtype | None) -> tuple[Tensor, Tensor | None]:
    return (pool, None) if dtype is None else quantize_heads(pool, dtype, torch.float16)


def close(got: Tensor, exact: Tensor, bound: float | None = None) -> bool:
    """Every row that was answered is answered alike, and every other still holds its NaN."""
    answered = ~exact.isnan()
    if not torch.equal(answered, ~got.isnan()):
        return False
    worst = (got.double() - exact)[answered].abs().max() if bool(answered.any()) else torch.zeros(())
    return bool(worst < (bound or (1e-5 if got.dtype == torch.float32 else 2e-3)))


def relative_error(got: Tensor, exact: Tensor) -> float:
    """‖got - exact‖ / ‖exact‖ over the rows that were to be answered; NaN where one was not, or another was."""
    answered = ~exact.isnan()
    if not torch.equal(answered, ~got.isnan()):
        return float("nan")
    return float((got.double() - exact)[answered].norm() / exact[answered].norm())
