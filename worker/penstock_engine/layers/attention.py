"""Attention over the paged pool, for a batch that mixes prefill chunks and decoding.

K and V are always read back from the pool, in prefill too: a token that was computed, found in the prefix cache or
resumed after a crash goes through the same numbers.

The batch is ragged in two directions, queries and context. `plan_attention` packs it, once per step, into a few
rectangles of runs of like size (each padded to less than twice its work); every layer then does one gather and one
product per rectangle, without a Python loop over requests.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from penstock_engine.kv_pool import KVPool
from penstock_engine.layers.ordered_attention import ordered_attention
from penstock_engine.tables import RowTables

FOLD_AT_MOST = 16  # queries; beyond, a mask per query head of a group would outweigh what folding saves


class Sight(NamedTuple):
    """What the queries of a rectangle look at."""

    pages: Tensor  # [runs * pages of each]
    mask: Tensor  # [runs, 1, queries, slots], 0 where a query may look and -inf elsewhere


@dataclass(slots=True)
class Rectangle:
    """`runs` runs of at most `queries` query tokens against at most `pages.shape[1]` pages of context."""

    runs: int
    queries: int
    tokens: Tensor | None  # [runs * queries], index of each query in the batch, padded by repeating; None: in order
    pages: NDArray[np.int32]  # [runs, pages_per_run], padded with the null page
    page_size: int
    last: NDArray[np.int64]  # [runs, queries], the position of each query
    device: torch.device
    dtype: torch.dtype
    _sights: dict[int | None, Sight] = field(default_factory=dict)

    def sight(self, window: int | None) -> Sight:
        """What is seen through `window` (None: all of the past); made once a step, for all layers that have it."""
        if window not in self._sights:
            self._sights[window] = self._look(window)
        return self._sights[window]

    def _look(self, window: int | None) -> Sight:
        # The pages before the earliest window of these runs are not even read.
        first = 0 if window is None else max(0, int(self.last.min()) - window + 1) // self.page_size
        pages, last = self.pages[:, first:], self.last - first * self.page_size
        slots = pages.shape[1] * self.page_size
        visible = _visible(slots, last)
        if window is not None:
            visible &= _recent(slots, last, window)
        mask = torch.zeros(visible.shape, dtype=self.dtype).masked_fill_(torch.from_numpy(~visible), -torch.inf)
        return Sight(torch.from_numpy(pages.ravel()).to(self.device), mask.unsqueeze(1).to(self.device))


@dataclass(slots=True)
class AttentionPlan:
    rectangles: list[Rectangle]
    ordered: bool = False  # sums in an order that nothing but a query's own past decides


def plan_attention(
    rows: NDArray[np.int64],
    starts: NDArray[np.int64],
    lens: NDArray[np.int64],
    tables: RowTables,
    device: torch.device,
    dtype: torch.dtype,
    *,
    ordered: bool = False,
) -> AttentionPlan:
    """Pack runs (row, first position, length) into rectangles by powers of two of length and of context pages."""
    offsets = np.cumsum(lens) - lens
    page_counts = -(-(starts + lens) // tables.page_size)
    shapes = _power(lens) * 64 + _power(page_counts)
    rectangles = []
    for shape in np.unique(shapes):
        members = np.flatnonzero(shapes == shape)
        alone = len(members) == len(rows)
        pages = tables.pages[rows[members], : page_counts[members].max()]
        rectangles.append(
            _rectangle(offsets[members], starts[members], lens[members], pages, tables.page_size, alone, device, dtype)
        )
    return AttentionPlan(rectangles, ordered)


def _power(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Exponent of the power of two that is at least `counts`."""
    return np.ceil(np.log2(counts)).astype(np.int64)


def _rectangle(
    offsets: NDArray[np.int64],
    starts: NDArray[np.int64],
    lens: NDArray[np.int64],
    pages: NDArray[np.int32],
    page_size: int,
    alone: bool,
    device: torch.device,
    dtype: torch.dtype,
) -> Rectangle:
    queries = int(lens.max())
    # A run shorter than its rectangle repeats its last query, whose answer is then written twice, alike.
    steps = np.minimum(np.arange(queries), lens[:, None] - 1)
    tokens = offsets[:, None] + steps
    in_order = alone and bool((lens == queries).all())
    return Rectangle(
        runs=len(lens),
        queries=queries,
        tokens=None if in_order else torch.from_numpy(tokens.ravel()).to(device),
        pages=pages,
        page_size=page_size,
        last=starts[:, None] + steps,
        device=device,
        dtype=dtype,
    )


def _visible(slots: int, last: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Each query sees its own position, `last` [runs, queries], and all before it: [runs, queries, slots]."""
    return np.arange(slots) <= last[:, :, None]


def _recent(slots: int, last: NDArray[np.int64], window: int) -> NDArray[np.bool_]:
    """The `window` positions up to each query's own, and all after it."""
    return np.arange(slots) > last[:, :, None] - window


@dataclass(frozen=True, slots=True)
class Scores:
    """How queries and keys are compared: softcap(q . k * scale) over the last `window` tokens (None: all)."""

    scale: float
    window: int | None = None
    softcap: float | None = None


def paged_attention(
    q: Tensor, pool: KVPool, layer: int, plan: AttentionPlan, *, kv_heads: int, scores: Scores
) -> Tensor:
    """Attend `q` [tokens, heads, head_dim] to what the pool holds of each token's past, itself included.

    Returns [tokens, heads * head_dim]; rows that no rectangle covers, padding, come out zero. Query heads are grouped:
    heads / kv_heads of them share a K/V head.
    """
    out = torch.zeros(len(q), q.shape[1] * q.shape[2], dtype=q.dtype, device=q.device)
    for rectangle in plan.rectangles:
        part = _attend(q, pool.pages(layer), rectangle, kv_heads, scores, plan.ordered)
        if rectangle.tokens is None:
            out[: len(part)] = part
        else:
            out.index_copy_(0, rectangle.tokens, part)
    return out


def _attend(q: Tensor, pages: Tensor, rectangle: Rectangle, kv_heads: int, scores: Scores, ordered: bool) -> Tensor:
    """One rectangle: [runs * queries, heads * head_dim]."""
    runs, queries, head_dim = rectangle.runs, rectangle.queries, q.shape[-1]
    seen, mask = rectangle.sight(scores.window)
    kv = pages.index_select(0, seen).view(runs, -1, 2 * kv_heads, head_dim).transpose(1, 2)
    k, v = kv[:, :kv_heads], kv[:, kv_heads:]  # [runs, kv_heads, slots, head_dim]
    chosen = q[: runs * queries] if rectangle.tokens is None else q.index_select(0, rectangle.tokens)
    grouped = chosen.view(runs, queries, kv_heads, -1, head_dim)
    groups = grouped.shape[3]
    if ordered:
        out = _ordered(grouped, k, v, mask, scores, rectangle.page_size)
    elif queries == 1 or groups == 1:
        out = _folded(grouped, k, v, mask, scores)
    elif queries <= FOLD_AT_MOST:
        out = _folded(grouped, k, v, mask.repeat_interleave(groups, dim=2), scores)
    else:
        each = [_folded(grouped[:, :, :, g : g + 1], k, v, mask, scores) for g in range(groups)]
        out = torch.cat(each, dim=3)
    return out.reshape(runs * queries, -1)


def _ordered(grouped: Tensor, k: Tensor, v: Tensor, mask: Tensor, scores: Scores, page_size: int) -> Tensor:
    """As `_folded`, for a batch whose numbers may not depend on who is in it."""
    runs, queries, kv_heads, groups, head_dim = grouped.shape
    folded = grouped.transpose(1, 2).reshape(runs, kv_heads, queries * groups, head_dim)
    mask = mask.repeat_interleave(groups, dim=2)
    out = ordered_attention(folded, k, v, mask, page_size=page_size, scale=scores.scale, softcap=scores.softcap)
    return out.view(runs, kv_heads, queries, groups, head_dim).transpose(1, 2)


def _folded(grouped: Tensor, k: Tensor, v: Tensor, mask: Tensor, scores: Scores) -> Tensor:
    """The query heads of a group as more queries of their K/V head, so that K and V are read once for all.

    `grouped` and the answer are [runs, queries, kv_heads, groups, head_dim].
    """
    runs, queries, kv_heads, groups, head_dim = grouped.shape
    folded = grouped.transpose(1, 2).reshape(runs, kv_heads, queries * groups, head_dim)
    if scores.softcap is None:
        out = F.scaled_dot_product_attention(folded, k, v, mask, scale=scores.scale)
    else:
        out = _softcapped_attention(folded, k, v, mask, scores.scale, scores.softcap)
    return out.view(runs, kv_heads, queries, groups, head_dim).transpose(1, 2)


def _softcapped_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, softcap: float) -> Tensor:
    """Scores pressed into (-softcap, softcap) before the mask. Source: Gemma Team, "Gemma 2", 2024."""
    compared = torch.tanh(q @ k.transpose(2, 3) * (scale / softcap)) * softcap + mask
    return torch.softmax(compared, dim=-1, dtype=torch.float32).to(v.dtype) @ v
