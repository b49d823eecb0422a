"""The reference of paged attention, against the formula written out token by token and against torch; its refusals."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from penstock_kernels.attention import paged_attention
from penstock_kernels.checks import ArgumentError, DtypeError, ShapeError
from penstock_kernels.gpu.decode_attention import LONGEST_SPLIT, SHORTEST_SPLIT, decode_attention, split_count
from penstock_kernels.gpu.extend_attention import extend_attention
from penstock_kernels.kv import dequantize_heads

from tests.kernels.attention_batches import Batch, close, make_batch


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (3, None), (None, 1.5), (4, 2.0)])
def test_the_formula_token_by_token(window: int | None, softcap: float | None) -> None:
    batch = make_batch([(3, 11), (1, 6), (2, 2)], window=window, softcap=softcap, dtype=torch.float64)
    assert close(_by_token(batch, window, softcap), batch.exact(), 1e-12)


def _by_token(batch: Batch, window: int | None, softcap: float | None) -> torch.Tensor:
    out = torch.full((len(batch.q), 64), torch.nan, dtype=torch.float64)
    page_size, heads = batch.pool.shape[1], batch.q.shape[1]
    for run, context in enumerate(batch.context_lens.tolist()):
        start, stop = batch.query_starts[run : run + 2].tolist()
        for row in range(start, stop):
            at = context - stop + row
            first = 0 if window is None else max(0, at - window + 1)
            slots = [(int(batch.page_table[run, p // page_size]), p % page_size) for p in range(first, at + 1)]
            for head in range(heads):
                kv_head = head // 2
                scores = torch.stack([batch.q[row, head] @ batch.pool[slot][kv_head] for slot in slots]) / 4
                scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
                values = torch.stack([batch.pool[slot][2 + kv_head] for slot in slots])
                out[row, head * 16 : head * 16 + 16] = torch.softmax(scores, 0) @ values
    return out


def test_a_whole_prompt_is_torchs_causal_attention() -> None:
    batch = make_batch([(12, 12)], dtype=torch.float64)
    kv = batch.pool[batch.page_table[0, :3].long()].flatten(0, 1).transpose(0, 1)
    q = batch.q[:12].transpose(0, 1)
    expected = F.scaled_dot_product_attention(q, kv[:2], kv[2:], is_causal=True, enable_gqa=True)
    torch.testing.assert_close(batch.exact()[:12], expected.transpose(0, 1).flatten(1))


def test_a_quantized_pool_is_what_its_numbers_stand_for() -> None:
    batch = make_batch([(2, 9)], pool_dtype=torch.int8)
    assert batch.scales is not None
    plain = Batch(batch.q, dequantize_heads(batch.pool, batch.scales), *batch.arguments[2:], None, batch.options)
    torch.testing.assert_close(batch.answer(paged_attention), plain.answer(paged_attention), equal_nan=True)


def test_runs_beyond_the_bounds_are_refused() -> None:
    batch = make_batch([(2, 9)])
    for bound in ({"max_query_len": 1}, {"max_context_len": 8}):
        with pytest.raises(ShapeError, match="run 0"):
            batch.answer(paged_attention, **bound)


WRONG: dict[str, tuple[type[ArgumentError], dict[str, Any]]] = {
    "q": (ShapeError, {"q": torch.zeros(3, 4)}),
    "pool": (DtypeError, {"pool": torch.zeros(2, 4, 4, 16, dtype=torch.float16)}),
    "pool has": (ShapeError, {"pool": torch.zeros(2, 4, 4, 32)[..., ::2]}),
    "heads": (ShapeError, {"pool": torch.zeros(2, 4, 6, 16)}),
    "page_table": (DtypeError, {"page_table": torch.zeros(1, 3, dtype=torch.int64)}),
    "query_starts": (ShapeError, {"query_starts": torch.zeros(3, dtype=torch.int32)}),
    "scales": (ShapeError, {"pool": torch.zeros(2, 4, 4, 16, dtype=torch.int8), "scales": torch.zeros(2, 4, 2)}),
    "context_lens": (ShapeError, {"context_lens": torch.zeros(1, dtype=torch.int32, device="meta")}),
}  # fmt: skip


@pytest.mark.parametrize("kernel", [paged_attention, extend_attention, decode_attention])
@pytest.mark.parametrize("named", WRONG)
def test_what_does_not_fit_is_refused_by_name(kernel: Any, named: str) -> None:
    error, fields = WRONG[named]
    batch = make_batch([(2, 9)])
    changed = Batch(**{**{name: getattr(batch, name) for name in Batch.__dataclass_fields__}, **fields})
    bounds = {"max_query_len": 2, "max_context_len": 9, "scales": changed.scales}
    with pytest.raises(error, match=named):
        kernel(*changed.arguments, torch.zeros(4, 64), **batch.options, **bounds)


@pytest.mark.parametrize("options", [{"scale": 0.0}, {"window": 0}, {"softcap": -1.0}])
def test_numbers_without_meaning_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ShapeError, match=next(iter(options))):
        make_batch([(2, 9)]).answer(extend_attention, **options)


def test_splits_fill_the_gpu_and_stay_between_their_bounds() -> None:
    """One run of Llama-3.1-8B on 132 multiprocessors is 8 programs; 64 runs are enough with two splits each."""
    assert split_count(8, 100, 132) == 1
    assert split_count(8, 8192, 132) == 8192 // SHORTEST_SPLIT
    assert split_count(64 * 8, 4096, 132) == 2
    assert split_count(256 * 8, 1024, 132) == 1
    assert split_count(256 * 8, 32768, 132) == 32768 // LONGEST_SPLIT
    assert split_count(1, 10**6, 132) == 64
