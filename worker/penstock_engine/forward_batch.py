"""One step as tensors: what `ScheduleBatch` decided, laid out for the model.

The tokens of all generations lie one after the other, [tokens], whoever they belong to; attention alone needs to
know where each generation's run begins. After the last one come rows of padding up to a size from a short list: every
new number of rows costs oneDNN a new kernel, 0.35 ms and 0.7 MB for each of a model's products (2-core AMD EPYC,
torch 2.13), and ragged traffic made an engine of the demo model grow from 350 to 930 MB. Padding rows flow through the
products, are never stored and never attended to, and are cut from the logits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penstock_engine.batch import ScheduleBatch, ScoredRun
from penstock_engine.kv_pool import KVPool
from penstock_engine.layers.attention import AttentionPlan, plan_attention
from penstock_engine.layers.ordered_attention import ROWS
from penstock_engine.staging import send
from penstock_engine.tables import RowTables

Indices = NDArray[np.int64]
IN_FLIGHT = -1  # the id of a token that an earlier step chooses, and the host does not know yet


class TokenPlaces(NamedTuple):
    """Where each token belongs, as arrays: for kernels that need no tensors."""

    pages: NDArray[np.int32]  # [rows, pages], the page table of all that runs
    rows: Indices  # [tokens], into `pages`
    positions: Indices  # [tokens]
    slots: Indices  # [tokens]
    context: int  # slots that hold what the furthest token sees; from a short list of sizes


class Runs(NamedTuple):
    """Each generation's queries and context on the device, as `penstock_kernels.attention` defines them."""

    page_table: Tensor  # [runs, pages] int32, as many as the longest context has
    query_starts: Tensor  # [runs + 1] int32
    context_lens: Tensor  # [runs] int32
    max_query_len: int
    max_context_len: int


@dataclass
class ForwardBatch:
    """Written by `build_forward_batch`, read by the model."""

    input_ids: Tensor  # [padded tokens]
    positions: Tensor  # [padded tokens], from 0 in each generation
    slots: Tensor  # [tokens], where each token's K and V go
    sample_at: Tensor | None  # [padded sampled], indices of the tokens whose logits are wanted; None: every token's
    tokens: TokenPlaces
    plan: Callable[[], AttentionPlan]
    pool: KVPool
    known_runs: Runs | None = None  # where they are on the device already

    @cached_property
    def attention(self) -> AttentionPlan:
        """How attention in torch goes about this batch; made by the first layer that asks."""
        return self.plan()

    @cached_property
    def runs(self) -> Runs:
        """What attention's kernels are told of this batch; made by the first layer that asks."""
        return self.known_runs or _runs_of(self.tokens, self.pool.page_size, self.input_ids.device)


@dataclass(frozen=True, slots=True)
class Layout:
    """A scheduled batch as arrays, before anything of it is on the device."""

    rows: Indices  # [runs], of the tables
    starts: Indices  # [runs], tokens computed before
    lens: Indices  # [runs]
    ends: NDArray[np.bool_]  # [runs], whether a run reaches the end of what is known
    ids: Indices  # [tokens]; IN_FLIGHT where only the device knows
    places: TokenPlaces
    scored: list[ScoredRun]

    @property
    def decodes(self) -> bool:
        """Each run is one token, and the next is wanted of all."""
        return len(self.ids) == len(self.rows) and bool(self.ends.all()) and not self.scored


def lay_out(batch: ScheduleBatch, tables: RowTables) -> Layout:
    """Numpy throughout: at these sizes a torch call costs more than the work."""
    count = len(batch.generations)
    rows = np.fromiter((each.row for each in batch.generations), np.int64, count)
    starts = np.fromiter((each.computed_len for each in batch.generations), np.int64, count)
    known = np.fromiter((each.length for each in batch.generations), np.int64, count)
    lens = np.array(batch.extend_lens, np.int64)
    token_rows, positions = _runs(rows, starts, lens)
    pages = tables.pages[token_rows, positions // tables.page_size].astype(np.int64)
    slots = pages * tables.page_size + positions % tables.page_size
    places = TokenPlaces(tables.pages, token_rows, positions, slots, _context(positions))
    return Layout(rows, starts, lens, starts + lens == known, _input_ids(batch), places, batch.scored)


def build_forward_batch(
    layout: Layout,
    tables: RowTables,
    pool: KVPool,
    device: torch.device,
    dtype: torch.dtype,
    *,
    latest: Tensor,
    deterministic: bool = False,
    padded: bool = True,
) -> ForwardBatch:
    """Put `layout` on the device. `latest` [rows of the tables] holds each row's last token, for ids IN_FLIGHT."""
    size = partial(padded_size, least=ROWS if deterministic else 1) if padded else int
    wanted = _sample_at(layout)
    arrays = [_pad(layout.ids, size), _pad(layout.places.positions, size), layout.places.slots]
    arrays += [] if wanted is None else [_pad(wanted, size)]
    in_flight = bool((layout.ids == IN_FLIGHT).any())
    ids, positions, slots, *rest = send(arrays + [_pad(layout.places.rows, size)] * in_flight, device)
    return ForwardBatch(
        input_ids=resolved(ids, rest.pop(), latest) if in_flight else ids,
        positions=positions,
        slots=slots,
        sample_at=rest.pop() if rest else None,
        tokens=layout.places,
        plan=lambda: plan_attention(
            layout.rows, layout.starts, layout.lens, tables, device, dtype, ordered=deterministic
        ),
        pool=pool,
    )


def resolved(ids: Tensor, rows: Tensor, latest: Tensor) -> Tensor:
    """`ids` [tokens], where those IN_FLIGHT are the latest of their rows."""
    return torch.where(ids == IN_FLIGHT, latest.index_select(0, rows), ids)


def _runs_of(tokens: TokenPlaces, page_size: int, device: torch.device) -> Runs:
    """A run begins where the row changes, and sees up to the position of its last token."""
    begins = np.flatnonzero(np.diff(tokens.rows, prepend=-1))
    query_starts = np.append(begins, len(tokens.rows)).astype(np.int32)
    context_lens = (tokens.positions[query_starts[1:] - 1] + 1).astype(np.int32)
    longest = int(context_lens.max())
    page_table = tokens.pages[tokens.rows[begins], : -(-longest // page_size)]
    table, starts, lens = send([page_table, query_starts, context_lens], device)
    return Runs(table, starts, lens, int(np.diff(query_starts).max()), longest)


def padded_size(rows: int, least: int = 1) -> int:
    """The next size: 1 to 4, then 8 apart, and from 64 on eight to an octave: at most an eighth is waste."""
    rows = max(rows, least)
    if rows <= 4:
        return rows
    step = max(8, (1 << (rows - 1).bit_length()) // 16)
    return -(-rows // step) * step


def _context(positions: Indices) -> int:
    """A power of two, and sixteen more: rows that far apart do not all fall on the same lines of a cache."""
    return max(256, 1 << int(positions.max()).bit_length()) + 16


def _pad(values: Indices, size: Callable[[int], int]) -> Indices:
    """Zeros after `values`, up to `size` of their number: token 0 at position 0."""
    out = np.zeros(size(len(values)), np.int64)
    out[: len(values)] = values
    return out


def _runs(
    rows: NDArray[np.int64], starts: NDArray[np.int64], lens: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each token's row and position."""
    total = int(lens.sum())
    if total == len(rows):  # one token each: steady decoding
        return rows, starts
    run_starts = np.cumsum(lens) - lens
    return np.repeat(rows, lens), np.arange(total) + np.repeat(starts - run_starts, lens)


def _input_ids(batch: ScheduleBatch) -> NDArray[np.int64]:
    ids: list[int] = []
    for each, extend_len in zip(batch.generations, batch.extend_lens, strict=True):
        if extend_len == 1:
            ids.append(IN_FLIGHT if each.awaited else each.tokens[each.computed_len])
        else:
            ids += each.tokens[each.computed_len : each.computed_len + extend_len]
    return np.array(ids, np.int64)


def _sample_at(layout: Layout) -> Indices | None:
    """The last token of every run that reaches the end of what is known; then those whose logits score prompts."""
    if layout.decodes:
        return None
    last_tokens = np.cumsum(layout.lens) - 1
    scoring = (
        last_tokens[run.at] + 1 - layout.lens[run.at] + run.offset + np.arange(len(run.targets))
        for run in layout.scored
    )
    wanted = np.concatenate((last_tokens[layout.ends], *scoring))
    # Where none is wanted, one row is computed for nothing: a product of no rows is an edge no kernel should meet.
    return wanted if len(wanted) else last_tokens[:1]
