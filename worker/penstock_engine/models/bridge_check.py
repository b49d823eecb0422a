"""The self-test of a bridged model at load: over pages, in pieces, it must say what it says as its authors wrote it."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from penstock_engine.errors import ModelUnsupported
from penstock_engine.forward_batch import ForwardBatch, TokenPlaces
from penstock_engine.kv_pool import KVPool
from penstock_engine.layers.attention import plan_attention
from penstock_engine.models.bridge import ATTENTION, BridgedLM
from penstock_engine.tables import RowTables

PAGE, TOKENS, PIECES = 8, 40, (17, 22, 1)
# Of the largest logit. A wrong mask, angle or scale is off by about 1; rounding by this much at the very most.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}


@torch.inference_mode()
def check_bridged(model: BridgedLM, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
    """Raises ModelUnsupported where the two differ, or where ours cannot do what the model asks."""
    if model.config.max_positions < TOKENS:
        raise _refused(model, folder, f"it has {model.config.max_positions} positions, too few to be checked")
    ids = (torch.arange(TOKENS) * 7919 % model.config.vocab_size).to(device)
    right = model.theirs(input_ids=ids.unsqueeze(0), use_cache=False).logits[0].float()
    try:
        model.theirs.set_attn_implementation(ATTENTION)
        ours = _in_pieces(model, ids, dtype, device)
    except Exception as cause:
        raise _refused(model, folder, str(cause)) from cause
    error = float((ours - right).abs().max() / right.abs().max())
    if not error <= TOLERANCE[dtype]:
        raise _refused(model, folder, f"over pages its logits differ by {error:.1%} from its own")


def _in_pieces(model: BridgedLM, ids: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    config, pages = model.config, TOKENS // PAGE
    pool = KVPool(
        layers=config.layers,
        pages=pages + 1,
        page_size=PAGE,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        dtype=dtype,
        device=device,
    )
    tables = RowTables(1, pages, PAGE)
    tables.pages[0] = np.arange(pages, 0, -1)  # not in order: a slot mistaken for a position shows
    starts = np.cumsum((0, *PIECES[:-1]))
    logits = [
        model(_step(ids, int(start), count, tables, pool, device, dtype))
        for start, count in zip(starts, PIECES, strict=True)
    ]
    return torch.cat(logits)


def _step(
    ids: Tensor, start: int, count: int, tables: RowTables, pool: KVPool, device: torch.device, dtype: torch.dtype
) -> ForwardBatch:
    """One request's tokens from `start` on, every one of them sampled after."""
    positions = np.arange(start, start + count)
    slots = tables.pages[0, positions // PAGE].astype(np.int64) * PAGE + positions % PAGE
    row, first, lens = np.zeros(1, np.int64), np.array([start]), np.array([count])
    return ForwardBatch(
        input_ids=ids[start : start + count],
        positions=torch.from_numpy(positions).to(device),
        slots=torch.from_numpy(slots).to(device),
        sample_at=None,
        tokens=TokenPlaces(tables.pages, np.zeros(count, np.int64), positions, slots, count),
        plan=lambda: plan_attention(row, first, lens, tables, device, dtype),
        pool=pool,
    )


def _refused(model: BridgedLM, folder: Path, problem: str) -> ModelUnsupported:
    kind = model.config.model_type
    return ModelUnsupported(folder / "config.json", f"model_type is {kind!r}: {problem}", "serve another architecture")
