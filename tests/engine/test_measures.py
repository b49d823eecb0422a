"""Times and counts of each request, exactly: the clock is the test's, and ticks once for every forward pass."""

from collections.abc import Iterable
from typing import Any

import pytest
from penstock_engine import Engine, EngineConfig, Request, RequestMeasures, SamplingParams, StepFailed
from penstock_engine.batch import ScheduleBatch
from penstock_engine.pending import Pending

from tests.engine.driving import greedy
from tests.engine.tiny import TinyModel, random_prompt

STEP_SECONDS = 1.0


class Clocked:
    """An engine whose every step takes a second, and nothing else any time; `wait` lets time pass between steps."""

    def __init__(self, model: TinyModel, **config: Any) -> None:
        self.engine = Engine.from_folder(model.folder, EngineConfig(dtype="float32", **config))
        self.now = 100.0
        self.engine._steady = lambda: self.now
        self._launch = self.engine._runner.launch
        self.engine._runner.launch = self._ticking  # type: ignore[method-assign]
        self.fails_next = False
        self.ended: dict[str, RequestMeasures] = {}

    def _ticking(self, batch: ScheduleBatch) -> Pending:
        if self.fails_next:
            raise RuntimeError("out of luck")
        self.now += STEP_SECONDS
        return self._launch(batch)

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def submit(self, *requests: Request) -> None:
        for request in requests:
            self.engine.submit(request)

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self.note(self.engine.step().measures)

    def finish(self) -> None:
        while self.engine.has_work:
            self.step()

    def note(self, measures: Iterable[RequestMeasures]) -> None:
        for each in measures:
            assert each.request_id not in self.ended
            self.ended[each.request_id] = each


def test_the_intervals_of_a_request_that_waits_prefills_in_chunks_and_decodes(llama: TinyModel) -> None:
    """`first` fills the only place: four steps of prefill (10 tokens of 40 each), four more of decoding."""
    clocked = Clocked(llama, max_running=1, token_budget=10)
    clocked.submit(Request("first", random_prompt(40, seed=1), greedy(5)))
    clocked.wait(0.5)
    clocked.submit(Request("second", random_prompt(7, seed=2), greedy(3)))
    clocked.wait(0.25)
    clocked.finish()
    first, second = clocked.ended["first"], clocked.ended["second"]
    assert (first.queue_seconds, first.prefill_seconds, first.decode_seconds) == (0.75, 4.0, 4.0)
    assert (first.inference_seconds, first.time_to_first_token, first.inter_token_seconds) == (8.0, 4.75, 1.0)
    assert (first.computed_tokens, first.generated_tokens, first.gaps) == (44, 5, 4)
    assert (second.queue_seconds, second.prefill_seconds, second.decode_seconds) == (8.25, 1.0, 2.0)
    assert (second.ended, second.choices, second.prompt_tokens, second.cached_tokens) == ("length", 1, 7, 0)
    stats = clocked.engine.stats()
    assert (stats.runs, stats.steps, stats.occupancy) == (11, 11, 1.0)


def test_gaps_between_tokens_hold_what_happens_between_steps(llama: TinyModel) -> None:
    clocked = Clocked(llama)
    clocked.submit(Request("r", random_prompt(5, seed=1), greedy(4)))
    clocked.step(2)
    clocked.wait(7.0)
    clocked.finish()
    measures = clocked.ended["r"]
    assert (measures.gaps, measures.gap_seconds, measures.longest_gap_seconds) == (3, 10.0, 8.0)
    assert measures.inter_token_seconds == pytest.approx(10 / 3)
    assert measures.decode_seconds == 10.0


def test_a_preempted_request_counts_what_it_runs_again(llama: TinyModel) -> None:
    """Six pages of four tokens, two prompts of eight: in step 6 each needs a fourth page, for its thirteenth token.

    `late` gives its three pages up, to the tree; `early` takes one of them in step 6 and one in step 10, and ends in
    step 12. So in step 13 `late` finds four of its twelve computed tokens, and runs the other eight a second time.
    """
    clocked = Clocked(llama, page_size=4, kv_pages=6, max_running=2)
    first = Request("early", random_prompt(8, seed=1), greedy(12))
    clocked.submit(first, Request("late", random_prompt(8, seed=2), greedy(8)))
    clocked.finish()
    early, late = clocked.ended["early"], clocked.ended["late"]
    stats = clocked.engine.stats()
    assert (early.preemptions, early.recomputed_tokens, early.computed_tokens) == (0, 0, 8 + 11)
    assert late.preemptions == 1 == stats.preemptions
    assert late.recomputed_tokens == stats.tokens_recomputed == 8
    assert late.computed_tokens == 8 + 7 + 8
    assert early.computed_tokens + late.computed_tokens == stats.tokens_computed
    assert (early.longest_gap_seconds, late.longest_gap_seconds) == (1.0, 13.0 - 5.0)
    assert (late.prefill_seconds, late.decode_seconds, late.gap_seconds) == (1.0, 15.0 - 1.0, 14.0)
    assert (late.cached_tokens, stats.prefix_hits, stats.prefix_queries) == (0, 0, 16)


def test_cached_tokens_and_the_hit_rate_are_those_of_first_admissions(llama: TinyModel) -> None:
    clocked = Clocked(llama, page_size=4)
    stem = random_prompt(16, seed=4)
    clocked.submit(Request("cold", [*stem, 1, 2], greedy(2)))
    clocked.finish()
    clocked.submit(Request("warm", [*stem, 3, 4], greedy(2)))
    clocked.finish()
    assert [clocked.ended[name].cached_tokens for name in ("cold", "warm")] == [0, 16]
    assert [clocked.ended[name].computed_tokens for name in ("cold", "warm")] == [18 + 1, 2 + 1]
    stats = clocked.engine.stats()
    assert (stats.prefix_queries, stats.prefix_hits, stats.hit_rate) == (36, 16, 16 / 36)


def test_choices_are_measured_as_one_request(llama: TinyModel) -> None:
    """Two run at once, so the third begins when they have ended."""
    clocked = Clocked(llama, max_running=2, token_budget=64, prefix_cache=False)
    sampling = SamplingParams(n=3, max_tokens=4, ignore_eos=True, seed=1)
    clocked.submit(Request("r", random_prompt(6, seed=1), sampling))
    clocked.wait(0.5)
    clocked.step(7)
    assert clocked.ended == {}
    clocked.finish()
    measures = clocked.ended["r"]
    assert (measures.queue_seconds, measures.prefill_seconds, measures.decode_seconds) == (0.5, 1.0, 7.0)
    assert (measures.choices, measures.prompt_tokens, measures.generated_tokens) == (3, 6, 12)
    assert (measures.computed_tokens, measures.gaps, measures.inter_token_seconds) == (3 * (6 + 3), 9, 1.0)
    stats = clocked.engine.stats()
    assert (stats.steps, stats.runs, stats.occupancy) == (8, 12, 12 / (8 * 2))


def test_what_best_of_holds_back_is_generated_all_the_same(llama: TinyModel) -> None:
    clocked = Clocked(llama)
    sampling = SamplingParams(n=1, best_of=3, max_tokens=4, ignore_eos=True, seed=1)
    clocked.submit(Request("r", random_prompt(6, seed=1), sampling))
    clocked.finish()
    measures = clocked.ended["r"]
    assert (measures.choices, measures.generated_tokens) == (3, 12)
    assert measures.prefill_seconds + measures.decode_seconds == clocked.engine.stats().steps


def test_a_failure_and_an_abort_end_the_measures_where_they_happen(llama: TinyModel) -> None:
    clocked = Clocked(llama, max_running=1)
    clocked.engine._clock = lambda: clocked.now
    clocked.submit(Request("late", random_prompt(5, seed=1), greedy(50), deadline=102.5, priority=1))
    clocked.submit(Request("gone", random_prompt(5, seed=2), greedy(50)))
    clocked.submit(Request("never", random_prompt(5, seed=3), greedy(50), deadline=101.0))
    clocked.step(3)
    late, never = clocked.ended["late"], clocked.ended["never"]
    assert late.ended == never.ended == "deadline_exceeded"
    assert (late.prefill_seconds, late.decode_seconds, late.generated_tokens) == (1.0, 2.0, 3)
    assert (never.queue_seconds, never.inference_seconds, never.computed_tokens) == (1.0, 0.0, 0)
    clocked.step(2)
    assert clocked.engine.abort("gone")
    assert "gone" not in clocked.ended
    clocked.step()
    gone = clocked.ended["gone"]
    assert (gone.ended, gone.queue_seconds, gone.generated_tokens, gone.decode_seconds) == ("abort", 3.0, 2, 1.0)


def test_a_step_that_failed_does_not_lose_the_measures(llama: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    clocked = Clocked(llama)

    def dead() -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(clocked.engine._runner, "probe", dead)
    clocked.submit(Request("r", random_prompt(5, seed=1), greedy(2)))
    clocked.fails_next = True
    with pytest.raises(StepFailed):
        clocked.step()
    clocked.fails_next = False
    clocked.wait(3.0)
    clocked.finish()
    measures = clocked.ended["r"]
    assert (measures.queue_seconds, measures.prefill_seconds, measures.decode_seconds) == (3.0, 1.0, 1.0)


def test_scoring_is_nobodys_request(llama: TinyModel) -> None:
    clocked = Clocked(llama)
    clocked.engine.score(random_prompt(9, seed=1))
    clocked.step()
    assert clocked.ended == {}


def test_kv_usage_counts_what_is_in_use_alone(llama: TinyModel) -> None:
    clocked = Clocked(llama, page_size=4, kv_pages=20)
    clocked.submit(Request("r", random_prompt(8, seed=1), greedy(3)))
    clocked.step(2)
    assert clocked.engine.stats().kv_usage == 3 / 20
    clocked.finish()
    stats = clocked.engine.stats()
    assert (stats.kv_usage, stats.pages_cached > 0) == (0.0, True)
