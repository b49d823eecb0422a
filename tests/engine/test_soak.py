"""A short turn of the soak: nothing is lost, no page, and nothing of an ended request stays in memory."""

import gc

import pytest
from penstock_engine import Engine, EngineConfig, Request
from penstock_engine.request import Generation

from bench.soak import NOISE_MIB, Mix, Overload, Sample, Source, balance, judge_memory
from tests.engine.tiny import VOCABULARY, TinyModel

MIX = Mix(
    stems=6,
    stem_tokens=60,
    own_median=10,
    output_median=40,
    several=0.2,
    scored=0.1,
    late=0.2,
    patience=0.1,
    poison=0.02,
)
EVERY_END = {"finished", "aborted", "deadline_exceeded", "forward_failed"}


def of_type(kind: type) -> int:
    gc.collect()
    return sum(type(each) is kind for each in gc.get_objects())


@pytest.fixture
def overload(llama: TinyModel) -> Overload:
    config = EngineConfig(dtype="float32", max_running=12, max_waiting=16, token_budget=48, kv_pages=24)
    engine = Engine.from_folder(llama.folder, config)
    return Overload(engine, Source(MIX, VOCABULARY, longest=engine.max_model_len))


def test_overload_loses_nothing_and_keeps_nothing(overload: Overload) -> None:
    requests, generations = of_type(Request), of_type(Generation)
    for _ in range(5000):
        overload.step()
        if set(overload.ledger.ended) == EVERY_END and overload.ledger.ended["finished"] > 100:
            break
    overload.drain()
    books = balance(overload)
    assert books.problems == []
    assert books.arrived == books.refused + sum(books.ended.values())
    assert set(books.ended) == EVERY_END
    assert books.ended["finished"] > 0.4 * books.submitted
    assert of_type(Request) <= requests + 1  # a variable may still name the last one
    assert of_type(Generation) <= generations + 1


def test_a_lost_request_is_told(overload: Overload) -> None:
    for _ in range(30):
        overload.step()
    overload.engine.abort(next(iter(overload.ledger.in_flight)))  # behind the ledger's back
    overload.drain()
    assert "1 requests lost" in balance(overload).problems


@pytest.mark.parametrize(
    ("growth", "holds"),
    [(lambda at: 0.0, True), (lambda at: 90.0 if at == 8 else 0.0, True), (lambda at: 3.0 * at, False)],
)
def test_growth_is_told_from_noise(growth: "object", holds: bool) -> None:
    assert callable(growth)
    warm_up = [100.0, 150.0, 180.0]
    sizes = [*warm_up, *(200.0 + at % 2 + growth(at) for at in range(9))]
    verdict = judge_memory([Sample(60.0 * at, 1.0, size) for at, size in enumerate(sizes)])
    assert verdict.holds is holds
    assert (verdict.grown_mib > NOISE_MIB) is not holds
    assert abs(verdict.slope_mib_per_minute - (0.0 if holds else 3.0)) < 0.5
