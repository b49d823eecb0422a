"""Attention over the paged pool, for runs of any number of queries against any length of context.

Shapes, in tokens and elements, the same for the reference here and for every kernel:

    q              [tokens, heads, head_dim]                      the queries of all runs, one run after the other
    pool           [pages, page_size, 2 * kv_heads, head_dim]     in each slot the K heads, then the V heads
    page_table     [runs, pages_per_run] int32                    where each run's context lies
    query_starts   [runs + 1] int32                               a run's queries are rows starts[r] to starts[r + 1]
    context_lens   [runs] int32                                   tokens of context, the run's queries included
    scales         [pages, page_size, 2 * kv_heads]               of a quantized pool; see `penstock_kernels.kv`
    out            [tokens, heads * head_dim]                     written in place

Query i of a run is at position `context_len - queries + i`, and sees the positions up to its own, of these the last
`window` where there is a window. `heads / kv_heads` query heads share a K/V head. Entries of the page table beyond a
run's context, and what the pool holds outside of what a run sees, are never looked at: they may be anything.

A run whose context is 0 is padding: its rows come out zero. Rows from `query_starts[runs]` on belong to no run and are
left as they are.
"""

import torch
from torch import Tensor

from penstock_kernels.checks import ShapeError, check_dense, check_dtype, check_same_device, check_shape
from penstock_kernels.kv import LARGEST, SCALE_DTYPES, dequantize_heads


def paged_attention(
    q: Tensor,
    pool: Tensor,
    page_table: Tensor,
    query_starts: Tensor,
    context_lens: Tensor,
    out: Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    max_query_len: int,
    max_context_len: int,
    scales: Tensor | None = None,
) -> None:
    """softmax(softcap(q . k * scale)) . v of every query over what it sees, run by run, in q's dtype or float32.

    softcap(x) is `softcap * tanh(x / softcap)`. `max_query_len` and `max_context_len` bound the runs' lengths: kernels
    choose their grid by them, so that a captured graph serves every batch within the bounds.
    Source: Vaswani et al., 2017; grouped heads by Ainslie et al., 2023; soft cap by Gemma Team, "Gemma 2", 2024.
    """
    check_paged_attention(q, pool, page_table, query_starts, context_lens, out, scale, window, softcap, scales)
    starts = query_starts.tolist()
    for run, context in enumerate(context_lens.tolist()):
        rows = slice(starts[run], starts[run + 1])
        if rows.stop - rows.start > max_query_len or context > max_context_len:
            raise ShapeError(f"run {run} is longer than max_query_len or max_context_len")
        if context == 0:
            out[rows] = 0
            continue
        k, v = _context(pool, scales, page_table[run], context, torch.promote_types(q.dtype, torch.float32))
        out[rows] = _attend(q[rows].to(k.dtype), k, v, scale, window, softcap).flatten(1).to(out.dtype)


def _context(
    pool: Tensor, scales: Tensor | None, pages: Tensor, length: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """K and V of a run's first `length` positions, each [kv_heads, length, head_dim]."""
    used = pages[: -(-length // pool.shape[1])].long()
    kv = pool[used].to(dtype) if scales is None else dequantize_heads(pool[used], scales[used]).to(dtype)
    k, v = kv.flatten(0, 1)[:length].transpose(0, 1).chunk(2)
    return k, v


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, softcap: float | None) -> Tensor:
    """`q` [queries, heads, head_dim] at the end of the context; as `q`."""
    queries, heads, _ = q.shape
    seen = _visible(queries, k.shape[1], window, q.device)
    k, v = (each.repeat_interleave(heads // len(each), dim=0) for each in (k, v))
    compared = torch.einsum("qhd,hkd->hqk", q, k) * scale
    if softcap is not None:
        compared = torch.tanh(compared / softcap) * softcap
    weights = torch.softmax(compared.masked_fill(~seen, -torch.inf), dim=-1)
    anywhere = seen.any(dim=0)  # what nobody sees may be anything, and 0 * NaN is NaN
    return torch.einsum("hqk,hkd->qhd", weights, v.masked_fill(~anywhere[:, None], 0))


def _visible(queries: int, context: int, window: int | None, device: torch.device) -> Tensor:
    """Which positions each query sees: [queries, context]."""
    at = torch.arange(context - queries, context, device=device)[:, None]
    positions = torch.arange(context, device=device)
    seen = positions <= at
    return seen if window is None else seen & (positions > at - window)


def check_paged_attention(
    q: Tensor,
    pool: Tensor,
    page_table: Tensor,
    query_starts: Tensor,
    context_lens: Tensor,
    out: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    scales: Tensor | None,
) -> None:
    """What kernels rely on, shape, stride, dtype and device; raises `ArgumentError`."""
    check_shape("q", q, (None, None, None))
    check_shape("pool", pool, (None, None, None, q.shape[2]))
    check_shape("out", out, (q.shape[0], q.shape[1] * q.shape[2]))
    if pool.shape[2] % 2 or q.shape[1] % (pool.shape[2] // 2):
        raise ShapeError(f"q has {q.shape[1]} heads, which {pool.shape[2]} K and V heads of pool do not divide")
    _check_runs(page_table, query_starts, context_lens)
    _check_pool(q, pool, scales)
    check_dtype("out", out, q.dtype)
    for name, tensor, dims in (("q", q, 1), ("pool", pool, 3), ("out", out, 1)):
        check_dense(name, tensor, dims)
    check_same_device(
        q=q, pool=pool, page_table=page_table, query_starts=query_starts, context_lens=context_lens, out=out,
        scales=scales,
    )  # fmt: skip
    for label, number in (("scale", scale), ("window", window), ("softcap", softcap)):
        if number is not None and not number > 0:
            raise ShapeError(f"{label} is {number} and should be above 0")


def _check_runs(page_table: Tensor, query_starts: Tensor, context_lens: Tensor) -> None:
    runs = len(context_lens)
    check_shape("context_lens", context_lens, (runs,))
    check_shape("query_starts", query_starts, (runs + 1,))
    check_shape("page_table", page_table, (runs, None))
    for name, tensor in (("page_table", page_table), ("query_starts", query_starts), ("context_lens", context_lens)):
        check_dtype(name, tensor, torch.int32)
        check_dense(name, tensor)


def _check_pool(q: Tensor, pool: Tensor, scales: Tensor | None) -> None:
    if scales is None:
        check_dtype("pool", pool, q.dtype)
        return
    check_dtype("pool", pool, *LARGEST)
    check_dtype("scales", scales, *SCALE_DTYPES)
    check_shape("scales", scales, tuple(pool.shape[:3]))
    check_dense("scales", scales, 2)
