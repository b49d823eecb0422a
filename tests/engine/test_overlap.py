"""Overlapping steps say what steps one after another say, whoever ends, joins, fails or leaves meanwhile."""

from itertools import pairwise
from typing import Any

import pytest
from penstock_engine import (
    EngineConfig,
    InvalidConfig,
    Request,
    RequestMeasures,
    SamplingParams,
)

from tests.engine.driving import Run, greedy, parity, run_all, step_once
from tests.engine.overlapping import Told, Watched, engine_of, nothing_left, told
from tests.engine.parity_table import ragged_requests
from tests.engine.tiny import TinyModel, compiled_only, random_prompt


def test_a_step_is_launched_before_the_one_ahead_of_it_is_waited_for(llama: TinyModel) -> None:
    engine = engine_of(llama)
    watched = Watched(engine)
    run_all(engine, [Request("x", [1, 2, 3], greedy(3))])
    assert watched.events == [
        *("launch 1", "choose 1", "launch 2", "result 1"),  # what 1 chose is on the device when 2 reads it there
        *("choose 2", "launch 3", "result 2"),  # what 1 chose is on the host when 2 chooses
        *("choose 3", "result 3"),  # the third token is the last by its number: nothing behind it
    ]


def test_by_default_a_cpu_takes_one_step_after_another(llama: TinyModel) -> None:
    engine = engine_of(llama, "auto")
    watched = Watched(engine)
    run_all(engine, [Request("x", [1, 2, 3], greedy(2))])
    assert watched.events == ["launch 1", "choose 1", "result 1", "launch 2", "choose 2", "result 2"]
    with pytest.raises(InvalidConfig, match="auto, on or off"):
        EngineConfig(overlap="maybe")  # type: ignore[arg-type]


def test_each_call_tells_one_step_and_the_first_call_the_first(llama: TinyModel) -> None:
    engine = engine_of(llama, token_budget=8, max_running=2)
    for name in ("a", "b"):
        engine.submit(Request(name, random_prompt(9, seed=ord(name)), greedy(4)))
    outputs = []
    while engine.has_work:
        outputs.append(engine.step())
    assert [each.step for each in outputs] == list(range(1, len(outputs) + 1))
    assert [each.counts.tokens for each in outputs[:3]] == [8, 8, 3]  # the prompts in chunks
    assert all(before.ended <= after.started for before, after in pairwise(outputs))
    assert all(each.started < each.ended for each in outputs)
    assert engine.step().step == len(outputs)  # which ran nothing
    assert nothing_left(engine)


def mixed_requests() -> list[Request]:
    """Stops by id, several choices, twins, penalties, minimum lengths, drawn and greedy, and one prompt again."""
    drawn: dict[str, Any] = {"temperature": 0.9, "seed": 5, "max_tokens": 24}
    stops = tuple(range(0, 199, 9))  # a token in nine
    kinds = [
        SamplingParams(**drawn, stop_token_ids=stops),
        SamplingParams(**drawn, n=3, ignore_eos=True),
        SamplingParams(**drawn, n=2, stop_token_ids=stops, min_tokens=6, ignore_eos=True),
        SamplingParams(**drawn, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.5),
        SamplingParams(**drawn, best_of=3, n=2, stop_token_ids=stops),
        SamplingParams(**drawn, prompt_logprobs=1, logprobs=2),
        greedy(24),
    ]
    prompts = [random_prompt(length, seed=length) for length in (1, 15, 16, 17, 40)]
    prompts += [prompts[-1], [*prompts[-1][:21], 3, 4]]
    return [
        Request(f"{at}-{which}", prompt, sampling)
        for which, prompt in enumerate(prompts)
        for at, sampling in enumerate(kinds)
        if (at + which) % 2  # half of them
    ]


TIGHT = {"max_running": 6, "token_budget": 16, "kv_pages": 8}
EXACT = {"deterministic": True, "dtype": "bfloat16"}


@pytest.mark.parametrize(
    "config",
    [
        {"kernels": "torch", "max_running": 8, "token_budget": 24},
        {"kernels": "torch", **TIGHT},
        {"kernels": "torch", "prefix_cache": False},
        {"kernels": "torch", **TIGHT, **EXACT},
        pytest.param({"kernels": "compiled", **TIGHT}, marks=compiled_only),
        pytest.param({"kernels": "compiled", **TIGHT, **EXACT}, marks=compiled_only),
    ],
    ids=["chunks", "preemption", "no cache", "deterministic", "preemption-compiled", "deterministic-compiled"],
)
def test_nothing_that_is_told_changes(llama: TinyModel, config: dict[str, Any]) -> None:
    """Tokens, how outputs end, and log probabilities; in the determinism lane, to the bit."""
    off, on = engine_of(llama, "off", **config), engine_of(llama, "on", **config)
    watched = Watched(on)
    expected, found = told(off, mixed_requests()), told(on, mixed_requests())
    if "deterministic" in config:
        assert found == expected
    assert _tokens(found) == _tokens(expected)
    assert _logprobs(found) == pytest.approx(_logprobs(expected), abs=1e-4)
    assert on.stats().tokens_generated == off.stats().tokens_generated
    assert (on.stats().preemptions > 0) == ("kv_pages" in config)
    ahead = [each for each, after in pairwise(watched.events) if (each + after).count("choose") * after.count("launch")]
    assert len(ahead) > len(watched.ran) // 2  # which is where a result is waited for, one step after another


def _tokens(found: Told) -> dict[tuple[str, int], list[tuple[int, str | None]]]:
    return {key: [(token, reason) for token, _, reason in said] for key, said in found.items()}


def _logprobs(found: Told) -> list[float]:
    return [logprob or 0.0 for key in sorted(found) for _, logprob, _ in found[key]]


def test_ragged_requests_equal_transformers(llama: TinyModel) -> None:
    engine = engine_of(llama, token_budget=16, max_running=5, kv_pages=16)
    requests = ragged_requests()
    run = run_all(engine, requests)
    found = parity(llama, requests, run)
    assert (found.wrong, found.worst_logprob < 1e-4) == (0, True)
    assert engine.stats().preemptions > 0
    assert sorted(name for name, _ in run.admitted) == sorted(run.deltas)


class TestOverrun:
    """A token that ran in vain, behind one that turned out to be the last."""

    def stopping(self, llama: TinyModel, at: int = 5) -> tuple[Request, list[int]]:
        """A request whose output ends with its `at`-th token, which nobody could know before."""
        prompt = random_prompt(20, seed=8)
        alone = run_all(engine_of(llama, "off"), [Request("x", prompt, greedy(at))]).tokens("x")
        assert alone.index(alone[-1]) == at - 1
        sampling = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True, stop_token_ids=(alone[-1],))
        return Request("x", prompt, sampling), alone

    def test_is_told_to_nobody_and_counted_nowhere(self, llama: TinyModel) -> None:
        request, alone = self.stopping(llama)
        engine = engine_of(llama, trace_steps=99)
        watched = Watched(engine)
        run = run_all(engine, [request])
        assert run.tokens("x") == alone
        assert len(watched.ran) == 6  # five steps, and one in vain
        stats = engine.stats()
        assert (stats.steps, stats.tokens_computed, stats.tokens_generated) == (5, 20 + 4, 5)
        assert [record.step for record in engine.trace] == [1, 2, 3, 4, 5]
        assert nothing_left(engine)

    def test_beside_others_it_is_left_out_of_the_step(self, llama: TinyModel) -> None:
        request, alone = self.stopping(llama)
        engine = engine_of(llama)
        other = Request("other", random_prompt(9, seed=2), greedy(12))
        run = run_all(engine, [request, other])
        assert (run.tokens("x"), len(run.tokens("other"))) == (alone, 12)
        assert [counts.requests for counts in run.steps] == [2] * 5 + [1] * 7
        assert parity(llama, [other], run).wrong == 0

    def test_its_pages_are_free_when_its_last_step_has_ended_and_no_sooner(self, llama: TinyModel) -> None:
        request, _ = self.stopping(llama)
        engine = engine_of(llama, prefix_cache=False)
        engine.submit(request)
        engine.submit(Request("other", random_prompt(9, seed=2), greedy(12)))
        in_use = []
        for _ in range(7):
            engine.step()
            in_use.append(engine.stats().pages_in_use)
        assert in_use[3:] == [3, 3, 1, 1]  # the fifth step is its last; the sixth is in flight then

    def test_it_is_not_in_the_prefix_cache(self, llama: TinyModel) -> None:
        """It would fill the second page, with the last of 32 tokens, which otherwise is never run."""
        request, alone = self.stopping(llama, at=12)
        engine = engine_of(llama)
        run_all(engine, [request])
        assert engine.stats().pages_cached == 1
        again = Request("again", [*request.prompt_ids, *alone, 1, 2], greedy(3))
        run = run_all(engine, [again])
        assert run.admitted == [("again", 16)]
        assert parity(llama, [again], run).wrong == 0


@pytest.mark.parametrize("later", [0, 1])
def test_an_identical_prompt_that_comes_while_the_first_is_in_flight_gets_its_own_first_token(
    llama: TinyModel, later: int
) -> None:
    """What is scheduled behind the first one's prefill runs its output: other logits than the prompt's last ones."""
    engine = engine_of(llama)
    requests = [Request(name, random_prompt(12, seed=3), greedy(8)) for name in ("first", "second")]
    run = Run()
    engine.submit(Request("other", [1, 2, 3], greedy(20)))
    step_once(engine, run)
    engine.submit(requests[0])
    for _ in range(1 + later):
        step_once(engine, run)
    engine.submit(requests[1])
    while engine.has_work:
        step_once(engine, run)
    assert run.tokens("second") == run.tokens("first")
    assert parity(llama, requests, run).wrong == 0


def test_an_abort_is_final_and_frees_everything_at_the_end_of_the_step_in_flight(llama: TinyModel) -> None:
    engine = engine_of(llama)
    run = Run()
    engine.submit(Request("gone", random_prompt(40, seed=1), greedy(50)))
    engine.submit(Request("stays", random_prompt(5, seed=2), greedy(9)))
    for _ in range(3):
        step_once(engine, run)
    assert engine.abort("gone")
    assert not engine.abort("gone")
    assert engine.stats().running == 1
    step_once(engine, run)
    assert engine.stats().pages_in_use == 1
    while engine.has_work:
        step_once(engine, run)
    assert (len(run.tokens("gone")), len(run.tokens("stays"))) == (3, 9)


def test_an_abort_of_the_last_leaves_nothing_in_flight(llama: TinyModel) -> None:
    engine = engine_of(llama)
    engine.submit(Request("x", random_prompt(40, seed=1), greedy(50)))
    engine.step()
    assert engine._flight is not None
    assert engine.abort("x")
    assert not engine.has_work
    assert nothing_left(engine)
    ended: list[RequestMeasures] = [*engine.step().measures]
    assert [(each.ended, each.generated_tokens) for each in ended] == [("abort", 1)]


def test_who_is_dropped_before_its_first_step_is_told_never_began(llama: TinyModel) -> None:
    engine = engine_of(llama)
    engine.submit(Request("first", [1, 2], greedy(5)))
    engine.step()
    engine.submit(Request("late", [3, 4], greedy(5)))
    engine.step()  # launches the step that lets it in
    assert engine.stats().running == 2
    assert engine.abort("late")
    run = run_all(engine)
    assert run.admitted == []
    assert len(run.tokens("first")) == 3


def test_scoring_drains_and_equals(llama: TinyModel) -> None:
    tokens = random_prompt(90, seed=4)
    on, off = engine_of(llama, token_budget=16, max_running=4), engine_of(llama, "off")
    watched = Watched(on)
    assert on.score(tokens, 5) == pytest.approx(off.score(tokens, 5), abs=1e-4)
    assert len(watched.ran) == on.stats().steps == 6  # none failed, to be run again
    assert not on.has_work
    assert nothing_left(on)
