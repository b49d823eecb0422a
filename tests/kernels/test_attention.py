"""The attention kernels, in Triton's interpreter, against the reference in float64; what may not be read is NaN."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock_kernels.gpu.attention_tiles import Tiles
from penstock_kernels.gpu.decode_attention import decode_attention
from penstock_kernels.gpu.extend_attention import extend_attention

from tests.kernels.attention_batches import SPARE_ROWS, Batch, Run, close, make_batch

SMALL = Tiles(16, 16, 4, 2)  # so that small contexts are of many tiles
FEW = settings(max_examples=8, deadline=None, derandomize=True)
KERNELS = {
    "extend": (extend_attention, {}),
    "whole": (decode_attention, {"splits": 1}),
    "split": (decode_attention, {"splits": 3}),
}
PREFILL: list[Run] = [(17, 17), (1, 40), (5, 33)]  # a prompt, a token that is decoded, a chunk behind a prefix
DECODE: list[Run] = [(1, 1), (1, 129), (3, 17)]
Answer = Callable[..., torch.Tensor]


@pytest.fixture(autouse=True, scope="module")
def poisoned_memory() -> Iterator[None]:
    """What a launcher allocates holds NaN until a kernel writes it."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=KERNELS)
def answer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Answer:
    """A kernel's answer to a batch, cut into small tiles and short splits."""
    monkeypatch.setattr("penstock_kernels.gpu.decode_attention.SHORTEST_SPLIT", 16)
    kernel, fixed = KERNELS[request.param]
    return lambda batch, **more: batch.answer(kernel, **{"tiles": SMALL, **fixed, **more})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("runs", [PREFILL, DECODE], ids=["prefill", "decode"])
def test_ragged_runs(answer: Answer, runs: list[Run], dtype: torch.dtype) -> None:
    batch = make_batch(runs, dtype=dtype)
    assert close(answer(batch), batch.exact())


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (6, 2), (7, 1), (8, 1)])
@pytest.mark.parametrize("head_dim", [20, 64])
def test_heads_and_groups(answer: Answer, heads: int, kv_heads: int, head_dim: int) -> None:
    """Also groups that do not divide the rows of a tile, and heads that are no power of two."""
    batch = make_batch([(3, 19), (1, 5)], heads=heads, kv_heads=kv_heads, head_dim=head_dim)
    assert close(answer(batch), batch.exact())


@pytest.mark.parametrize(("window", "softcap"), [(1, None), (7, None), (20, 5.0), (1000, None), (None, 2.0)])
def test_window_and_softcap(answer: Answer, window: int | None, softcap: float | None) -> None:
    batch = make_batch([(17, 60), (1, 50), (2, 2)], window=window, softcap=softcap)
    assert close(answer(batch), batch.exact())


@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("pool_dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantized_pool(answer: Answer, pool_dtype: torch.dtype, window: int | None) -> None:
    """Scales outside of the contexts are NaN."""
    batch = make_batch([(5, 33), (1, 18)], pool_dtype=pool_dtype, window=window)
    assert close(answer(batch), batch.exact())


@given(
    runs=st.lists(
        st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(n, 40))), min_size=1, max_size=4
    ),
    window=st.none() | st.integers(1, 40),
    page_size=st.sampled_from([1, 3, 16]),
    seed=st.integers(0, 9),
)
@FEW
@pytest.mark.parametrize("name", KERNELS)
def test_any_batch(name: str, runs: list[Run], window: int | None, page_size: int, seed: int) -> None:
    kernel, fixed = KERNELS[name]
    batch = make_batch(runs, heads=2, kv_heads=1, window=window, page_size=page_size, seed=seed)
    assert close(batch.answer(kernel, tiles=SMALL, **fixed), batch.exact())


def test_padding_runs_come_out_zero_and_rows_of_no_run_stay(answer: Answer) -> None:
    batch = make_batch([(1, 20), (1, 0), (2, 0)])
    out = answer(batch)
    assert close(out, batch.exact())
    assert not out[1:4].any()
    assert out[-SPARE_ROWS:].isnan().all()


def test_bounds_of_a_captured_graph_may_be_wider_than_the_batch(answer: Answer) -> None:
    batch = make_batch([(1, 20), (2, 33)])
    assert close(answer(batch, max_query_len=5, max_context_len=4000), batch.exact())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kernel", [extend_attention, decode_attention])
def test_tiles_and_splits_that_are_chosen(kernel: Any, dtype: torch.dtype) -> None:
    batch = make_batch([(1, 700), (2, 30)], heads=2, kv_heads=1, head_dim=128, page_size=16, dtype=dtype)
    assert close(batch.answer(kernel), batch.exact())


def test_more_runs_than_are_searched_at_once() -> None:
    batch = make_batch([(1, 1 + run % 3) for run in range(300)], heads=1, kv_heads=1, page_size=1)
    assert close(batch.answer(extend_attention, tiles=SMALL), batch.exact())


@pytest.mark.parametrize("window", [None, 21])
def test_neighbours_and_chunks_change_no_bit(window: int | None) -> None:
    """The last 9 queries of a prompt: as part of a whole prefill, as a chunk of their own, with neighbours, alone."""
    tiles = {"tiles": SMALL}
    whole = make_batch([(50, 50)], window=window)
    chunk = _last_queries(whole, 9)
    last = whole.answer(extend_attention, **tiles)[41:50]
    assert torch.equal(chunk.answer(extend_attention, **tiles)[:9], last)
    for at in range(9):
        single = _last_queries(whole, 9 - at, 1)
        assert torch.equal(single.answer(extend_attention, **tiles)[:1], last[at : at + 1])


def _last_queries(whole: Batch, back: int, count: int | None = None) -> Batch:
    """Of a batch of one run, its queries from `back` before the end on, with the context up to them."""
    tokens, count = int(whole.query_starts[1]), count or back
    begin = tokens - back
    return Batch(
        q=whole.q[begin : begin + count],
        pool=whole.pool,
        page_table=whole.page_table,
        query_starts=torch.tensor([0, count], dtype=torch.int32),
        context_lens=torch.tensor([begin + count], dtype=torch.int32),
        scales=whole.scales,
        options=whole.options,
    )


def test_a_fixed_number_of_splits_makes_decoding_blind_to_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock_kernels.gpu.decode_attention.SHORTEST_SPLIT", 16)
    fixed = {"tiles": SMALL, "splits": 2}
    batch = make_batch([(1, 77), (1, 130)])
    alone = _first_run(batch)
    assert torch.equal(alone.answer(decode_attention, **fixed)[:1], batch.answer(decode_attention, **fixed)[:1])


def _first_run(batch: Batch) -> Batch:
    return Batch(
        batch.q[:1],
        batch.pool,
        batch.page_table[:1],
        batch.query_starts[:2],
        batch.context_lens[:1],
        None,
        batch.options,
    )
