"""The attention kernels, in Triton's interpreter, against the reference in float64; what may not be read is NaN."""

from collections.abc import Callable, Iterator
from dataclasses import replace
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
FEW = settings(max_examples=5, deadline=None, derandomize=True)
KERNELS = {
    "extend": (extend_attention, {}),
    "whole": (decode_attention, {"splits": 1}),
    "split": (decode_attention, {"splits": 3}),
}
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
def test_ragged_runs(answer: Answer, dtype: torch.dtype) -> None:
    batch = make_batch([(1, 1), (1, 129), (3, 17)], dtype=dtype)
    assert close(answer(batch), batch.exact())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_prompts_chunks_and_decoding_in_one_call(dtype: torch.dtype) -> None:
    """The tokens of three runs; each run's queries are of several Q-blocks, but for one token that is decoded."""
    batch = make_batch([(17, 17), (1, 40), (9, 129)], dtype=dtype)
    assert close(batch.answer(extend_attention, tiles=SMALL), batch.exact())


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (6, 2), (7, 1), (8, 1)])
@pytest.mark.parametrize("head_dim", [20, 64])
def test_heads_and_groups(answer: Answer, heads: int, kv_heads: int, head_dim: int) -> None:
    """Also groups that do not divide the rows of a tile, and heads that are no power of two."""
    batch = make_batch([(2, 19), (1, 5)], heads=heads, kv_heads=kv_heads, head_dim=head_dim)
    assert close(answer(batch), batch.exact())


@pytest.mark.parametrize(("window", "softcap"), [(1, None), (7, None), (20, 5.0), (1000, None), (None, 2.0)])
def test_window_and_softcap(answer: Answer, window: int | None, softcap: float | None) -> None:
    batch = make_batch([(9, 60), (1, 50)], heads=2, kv_heads=1, window=window, softcap=softcap)
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
    batch = make_batch([(0, 0)] * 254 + [(1, 3), (2, 5), (1, 2)], heads=1, kv_heads=1)
    assert close(batch.answer(extend_attention, tiles=SMALL), batch.exact())


@pytest.mark.parametrize("window", [None, 13])
def test_neighbours_and_chunks_change_no_bit(window: int | None) -> None:
    """The end of a prompt: in a whole prefill, as a chunk of its own, a token alone, beside another run.

    The interpreter's products are numpy's, which sums the rows of a tile in more than one order: so each query keeps
    its place in the tile, at a multiple of the 8 queries of a Q-block.
    """
    tiles = {"tiles": SMALL}
    whole = make_batch([(26, 26)], heads=2, kv_heads=1, window=window)
    answers = whole.answer(extend_attention, **tiles)
    for begin, count in ((16, 10), (16, 1), (24, 2)):
        part = _part(whole, begin, count).answer(extend_attention, **tiles)
        assert torch.equal(part[:count], answers[begin : begin + count])
    both = make_batch([(26, 26), (3, 20)], heads=2, kv_heads=1, window=window)
    alone = _part(both, 0, 26).answer(extend_attention, **tiles)
    assert torch.equal(alone[:26], both.answer(extend_attention, **tiles)[:26])


def _part(batch: Batch, begin: int, count: int) -> Batch:
    """Of the first run, `count` queries from `begin` on, with the context up to them."""
    past = int(batch.context_lens[0] - batch.query_starts[1])
    return replace(
        batch,
        q=batch.q[begin : begin + count],
        page_table=batch.page_table[:1],
        query_starts=torch.tensor([0, count], dtype=torch.int32),
        context_lens=torch.tensor([past + begin + count], dtype=torch.int32),
    )


def test_a_fixed_number_of_splits_makes_decoding_blind_to_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock_kernels.gpu.decode_attention.SHORTEST_SPLIT", 16)
    fixed = {"tiles": SMALL, "splits": 2}
    batch = make_batch([(1, 77), (1, 130)])
    alone = _part(batch, 0, 1).answer(decode_attention, **fixed)
    assert torch.equal(alone, batch.answer(decode_attention, **fixed)[:1])
