"""How the device's time is split: the shares of all requests are the time that the engine was busy."""

import itertools
import random

import pytest
from penstock_engine import Engine, EngineConfig, Request, SamplingParams, StepShare

from tests.engine.driving import greedy
from tests.engine.tiny import TinyModel, random_prompt


class Clocked:
    """An engine whose every look at the clock finds it a different, known while later."""

    def __init__(self, model: TinyModel, **config: object) -> None:
        self.engine = Engine.from_folder(model.folder, EngineConfig(dtype="float32", **config))  # type: ignore[arg-type]
        ticks = random.Random(7)
        self._now = 100.0
        self.engine._steady = lambda: self._tick(ticks.random())
        self.shares: list[StepShare] = []
        self.step_seconds = 0.0

    def _tick(self, seconds: float) -> float:
        self._now += seconds
        return self._now

    def finish(self) -> None:
        while self.engine.has_work:
            output = self.engine.step()
            self.shares += output.shares
            if output.shares:
                self.step_seconds += output.ended - output.started

    def of(self, request_id: str) -> list[StepShare]:
        return [share for share in self.shares if share.request_id == request_id]


@pytest.mark.parametrize("overlap", ["off", "on"])
def test_the_shares_of_all_requests_are_the_busy_time(llama: TinyModel, overlap: str) -> None:
    """Chunked prefills, preemptions, choices, an abort: whatever happens, no second is lost or told twice."""
    clocked = Clocked(llama, page_size=4, kv_pages=6, max_running=2, token_budget=6, overlap=overlap)
    lengths = itertools.cycle((8, 8, 5))
    for number, length in zip(range(7), lengths, strict=False):
        sampling = SamplingParams(n=2, max_tokens=5, ignore_eos=True, seed=1) if number == 3 else greedy(12)
        clocked.engine.submit(Request(f"r{number}", random_prompt(length, seed=number), sampling))
    for _ in range(3):
        clocked.shares += (output := clocked.engine.step()).shares
        clocked.step_seconds += output.ended - output.started
    clocked.engine.abort("r5")
    clocked.finish()
    stats = clocked.engine.stats()
    assert stats.preemptions > 0
    assert sum(share.seconds for share in clocked.shares) == pytest.approx(stats.busy_seconds, rel=1e-12)
    if overlap == "off":
        assert clocked.step_seconds == pytest.approx(stats.busy_seconds, rel=1e-12)
    assert sum(share.tokens for share in clocked.shares) == stats.tokens_computed
    assert sum(share.recomputed for share in clocked.shares) == stats.tokens_recomputed > 0


def test_a_step_is_split_by_the_tokens_that_ran_in_it(llama: TinyModel) -> None:
    clocked = Clocked(llama, token_budget=64)
    clocked.engine.submit(Request("long", random_prompt(30, seed=1), greedy(3)))
    clocked.engine.submit(Request("short", random_prompt(10, seed=2), greedy(3)))
    clocked.finish()
    (long, *decoding), (short, *_) = clocked.of("long"), clocked.of("short")
    assert (long.tokens, short.tokens) == (30, 10)
    assert long.seconds == pytest.approx(3 * short.seconds)
    assert [share.tokens for share in decoding] == [1, 1]
    assert [share.seconds for share in decoding] == pytest.approx([share.seconds for share in clocked.of("short")[1:]])


def test_shares_agree_with_the_measures(llama: TinyModel) -> None:
    clocked = Clocked(llama, page_size=4, kv_pages=6, max_running=2)
    clocked.engine.submit(Request("early", random_prompt(8, seed=1), greedy(12)))
    clocked.engine.submit(Request("late", random_prompt(8, seed=2), greedy(8)))
    told = {}
    while clocked.engine.has_work:
        output = clocked.engine.step()
        clocked.shares += output.shares
        told |= {measures.request_id: measures for measures in output.measures}
    for name, measures in told.items():
        assert sum(share.tokens for share in clocked.of(name)) == measures.computed_tokens
        assert sum(share.recomputed for share in clocked.of(name)) == measures.recomputed_tokens
    assert told["late"].recomputed_tokens == 8


def test_steps_that_overlap_share_no_second_twice() -> None:
    """Of two steps in flight at once the later begins, for its shares, where the earlier one ended."""
    from penstock_engine.batch import ScheduleBatch
    from penstock_engine.measures import Meter
    from penstock_engine.request import Generation

    meter = Meter()
    request = Request("r", [1, 2], greedy(5))
    generation = Generation(request, 0, 0, [1, 2], 2, 9, frozenset(), 1)
    for started, ended in ((0.0, 2.0), (1.0, 3.5)):
        batch = ScheduleBatch(8)
        batch.add(generation, 1)
        meter.note(batch, started, ended)
    assert [share.seconds for share in meter.take_shares()] == [2.0, 1.5]
    assert meter.busy_seconds == 3.5
