"""The KV pool gets another size between two steps, and no request says anything else for it."""

from collections.abc import Callable

import pytest
from penstock_engine import Engine, InvalidConfig, Request, RequestRefused
from penstock_engine.config import Overlap
from penstock_engine.kv_pool import KVPool

from tests.engine.driving import Run, greedy, run_all, step_once
from tests.engine.overlapping import engine_of, nothing_left
from tests.engine.tiny import TinyModel, random_prompt

PAGES = 40


def requests() -> list[Request]:
    """Two that begin alike, so that pages are shared and cached, and one that does not."""
    shared = random_prompt(50, seed=1)
    return [
        Request("a", [*shared, 5], greedy(40)),
        Request("b", [*shared, 9], greedy(40)),
        Request("c", random_prompt(30, seed=2), greedy(12)),
    ]


def small(model: TinyModel, overlap: Overlap = "off") -> Engine:
    return engine_of(model, overlap, kv_pages=PAGES, max_running=4, max_model_len=128)


def bytes_of(engine: Engine, pages: int) -> int:
    return (pages + 1) * engine._shape.page_bytes


def with_resizes(engine: Engine, at: dict[int, int]) -> Run:
    """Run `requests()`, and change the pool to so many pages before the steps of these numbers."""
    run = Run()
    for request in requests():
        engine.submit(request)
    while engine.has_work:
        if (pages := at.get(len(run.steps))) is not None:
            engine.resize(bytes_of(engine, pages))
        step_once(engine, run)
    return run


def texts(run: Run) -> dict[str, list[tuple[int, int]]]:
    return {name: sorted((each.choice, each.token_id) for each in deltas) for name, deltas in run.deltas.items()}


@pytest.mark.parametrize("overlap", ["off", "on"])
def test_requests_in_flight_go_on_as_if_nothing_had_been(llama: TinyModel, overlap: Overlap) -> None:
    engine = small(llama, overlap)
    assert engine.kv_bytes == bytes_of(engine, PAGES)
    undisturbed = run_all(small(llama), requests())
    resized = with_resizes(engine, {4: 20, 9: 60, 15: 12})
    assert texts(resized) == texts(undisturbed)
    assert resized.failed == []
    assert (engine.stats().pages_total, engine.kv_bytes) == (12, bytes_of(engine, 12))
    assert engine.stats().preemptions >= 3
    assert nothing_left(engine)


def test_an_idle_engine_forgets_its_prefixes_and_takes_longer_requests(llama: TinyModel) -> None:
    engine = engine_of(llama, "off", kv_pages=4, max_running=2, max_model_len=128)
    long = Request("long", random_prompt(90, seed=3), greedy(2))
    with pytest.raises(RequestRefused):
        engine.submit(long)
    run_all(engine, [Request("x", [1] * 40, greedy(3))])
    assert engine.stats().pages_cached
    engine.resize(bytes_of(engine, 10))
    assert (engine.stats().pages_total, engine.stats().pages_cached) == (10, 0)
    assert len(run_all(engine, [long]).tokens("long")) == 2


def test_the_longest_request_always_fits(llama: TinyModel) -> None:
    engine = small(llama)
    engine.resize(bytes_of(engine, 1))
    assert engine.stats().pages_total == 128 // 16
    with pytest.raises(InvalidConfig, match="kv_bytes"):
        engine.resize(1)


def test_a_pool_of_the_same_size_is_left_alone(llama: TinyModel) -> None:
    engine = small(llama)
    run_all(engine, [Request("x", [1] * 40, greedy(3))])
    cached = engine.stats().pages_cached
    engine.resize(bytes_of(engine, PAGES))
    assert engine.stats().pages_cached == cached > 0


def test_who_leaves_with_the_last_step_in_flight_leaves_the_pool_to_be_resized(llama: TinyModel) -> None:
    engine = small(llama, "on")
    engine.submit(Request("x", [1] * 40, greedy(30)))
    engine.step()
    assert engine._flight is not None
    engine.resize(bytes_of(engine, 20))
    assert engine.stats().pages_total == PAGES
    engine.abort("x")
    assert engine.stats().pages_total == 20


def test_memory_is_given_back_before_more_is_taken(llama: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = small(llama)
    pool, held = engine._runner._pool, []
    allocate: Callable[[KVPool, int], None] = KVPool._allocate

    def note(pool: KVPool, pages: int) -> None:
        held.append((list(pool._pages), list(pool._moved)))
        allocate(pool, pages)

    monkeypatch.setattr(KVPool, "_allocate", note)
    engine.resize(bytes_of(engine, 20))
    assert held == [([], [])]
    assert pool.pages(0).shape[0] == 21
