"""One step as tensors: what `ScheduleBatch` decided, laid out for the model.

The tokens of all generations lie one after the other, [tokens], whoever they belong to; attention alone needs to
know where each generation's run begins.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penstock_engine.batch import ScheduleBatch
from penstock_engine.kv_pool import KVPool
from penstock_engine.layers.attention import AttentionPlan, plan_attention
from penstock_engine.tables import RowTables


@dataclass(slots=True)
class ForwardBatch:
    """Written by `build_forward_batch`, read by the model."""

    input_ids: Tensor  # [tokens]
    positions: Tensor  # [tokens], from 0 in each generation
    slots: Tensor  # [tokens], where each token's K and V go
    sample_at: Tensor | None  # [sampled], indices of the tokens whose logits are wanted; None: every token's
    attention: AttentionPlan
    pool: KVPool


def build_forward_batch(
    batch: ScheduleBatch, tables: RowTables, pool: KVPool, device: torch.device, dtype: torch.dtype
) -> ForwardBatch:
    """Lay `batch` out. Numpy throughout: at these sizes a torch call costs more than the work."""
    count = len(batch.generations)
    rows = np.fromiter((each.row for each in batch.generations), np.int64, count)
    starts = np.fromiter((each.computed_len for each in batch.generations), np.int64, count)
    lens = np.array(batch.extend_lens, np.int64)
    token_rows, positions = _runs(rows, starts, lens)
    pages = tables.pages[token_rows, positions // tables.page_size].astype(np.int64)
    slots = pages * tables.page_size + positions % tables.page_size
    return ForwardBatch(
        input_ids=torch.from_numpy(_input_ids(batch)).to(device),
        positions=torch.from_numpy(positions).to(device),
        slots=torch.from_numpy(slots).to(device),
        sample_at=_sample_at(batch, starts, lens, device),
        attention=plan_attention(rows, starts, lens, tables, device, dtype),
        pool=pool,
    )


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
            ids.append(each.tokens[each.computed_len])
        else:
            ids += each.tokens[each.computed_len : each.computed_len + extend_len]
    return np.array(ids, np.int64)


def _sample_at(
    batch: ScheduleBatch, starts: NDArray[np.int64], lens: NDArray[np.int64], device: torch.device
) -> Tensor | None:
    """The last token of every run that reaches the end of what is known."""
    known = np.fromiter((len(each.tokens) for each in batch.generations), np.int64, len(lens))
    ends = (starts + lens) == known
    if ends.all() and len(lens) == int(lens.sum()):
        return None
    last_tokens = np.cumsum(lens) - 1
    # Where no run ends, one row is computed for nothing: a product of no rows is an edge no kernel should meet.
    return torch.from_numpy(last_tokens[ends] if ends.any() else last_tokens[:1]).to(device)
