"""Overlapping steps where something fails, is let go, or comes and goes between any two of them."""

import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock_engine import (
    Engine,
    Request,
    SamplingParams,
    StepFailed,
)

from tests.engine.driving import Run, check_pages, greedy, parity, run_all, step_once
from tests.engine.overlapping import Told, Watched, engine_of, nothing_left, said
from tests.engine.tiny import TinyModel, random_prompt


class TestFaults:
    """A step that fails takes the one behind it along; nobody but who is at fault is the worse for it."""

    @pytest.fixture
    def engine(self, llama: TinyModel) -> Iterator[Engine]:
        engine = engine_of(llama, token_budget=64, kv_pages=60)
        yield engine
        assert nothing_left(engine)

    def test_nothing_of_the_step_behind_is_committed(self, llama: TinyModel, engine: Engine) -> None:
        requests = [Request(name, random_prompt(10, seed=at), greedy(6)) for at, name in enumerate("abc")]
        run = Run()
        for request in requests:
            engine.submit(request)
        step_once(engine, run)

        def fail() -> Any:
            raise ValueError("out of luck")

        assert engine._flight is not None
        assert engine._flight._pending is not None
        engine._flight._pending.result = fail  # type: ignore[method-assign]
        watched = Watched(engine)
        step_once(engine, run)  # fails with the next one launched, and is run again as a whole
        assert watched.events[:3] == ["launch 1", "launch 2", "result 2"]
        assert watched.ran == [["a", "b", "c"]] * 2  # nothing is in flight behind what was run again
        assert [len(run.tokens(each.id)) for each in requests] == [2, 2, 2]
        while engine.has_work:
            step_once(engine, run)
        found = parity(llama, requests, run)
        assert (found.wrong, found.tokens) == (0, 18)

    def test_a_launch_that_fails_is_told_when_its_turn_comes(self, engine: Engine) -> None:
        run = Run()
        engine.submit(Request("x", [1, 2, 3], greedy(6)))
        step_once(engine, run)
        dead = engine._runner._model
        engine._runner._model = lambda _: 1 / 0  # type: ignore[assignment]
        step_once(engine, run)
        assert [delta.position for delta in run.deltas["x"]] == [0, 1]
        with pytest.raises(StepFailed) as failure:
            engine.step()
        assert (failure.value.step, failure.value.request_ids) == (3, ("x",))
        engine._runner._model = dead
        while engine.has_work:
            step_once(engine, run)
        expected = run_all(engine, [Request("y", [1, 2, 3], greedy(6))])
        assert run.tokens("x") == expected.tokens("y")

    def test_nan_in_one_leaves_the_others_of_the_step_behind(self, llama: TinyModel, engine: Engine) -> None:
        """The next step has run the failed request too: with what it chose from NaN, into pages that must be wiped."""
        requests = [
            Request(name, random_prompt(10, seed=at), greedy(9)) for at, name in enumerate(("bad", "ok", "fine"))
        ]
        forward, calls = engine._runner._model, 0

        def poisoned(batch: Any) -> torch.Tensor:
            nonlocal calls
            calls += 1
            logits: torch.Tensor = forward(batch)
            if calls in (3, 4):
                logits[0] = torch.nan
            return logits

        engine._runner._model = poisoned  # type: ignore[assignment]
        scrubbed: list[int] = []
        engine._runner.scrub = scrubbed.extend  # type: ignore[method-assign,assignment]
        run = run_all(engine, requests)
        assert [(each.request_id, each.code) for each in run.failed] == [("bad", "logits_not_finite")]
        assert len(run.tokens("bad")) == 2
        assert parity(llama, requests[1:], run).wrong == 0
        assert len(scrubbed) == 1  # its only page, once the step in flight has ended

    def test_deadlines_end_what_is_in_flight(self, engine: Engine) -> None:
        engine._clock = lambda: 100.0
        run = Run()
        engine.submit(Request("late", random_prompt(5, seed=1), greedy(20), deadline=101.0))
        engine.submit(Request("free", random_prompt(5, seed=2), greedy(6)))
        step_once(engine, run)
        engine._clock = lambda: 101.0
        step_once(engine, run)
        assert [(each.request_id, each.code) for each in run.failed] == [("late", "deadline_exceeded")]
        while engine.has_work:
            step_once(engine, run)
        assert (len(run.tokens("late")), len(run.tokens("free"))) == (1, 6)


def test_progress_counts_steps_that_have_ended(llama: TinyModel) -> None:
    engine = engine_of(llama)
    engine.submit(Request("x", [1, 2, 3], greedy(5)))
    seen = []
    for _ in range(3):
        engine.step()
        seen.append(engine.progress)
    assert seen == [1, 2, 3]  # though another was launched each time


def test_logits_are_let_go_once_tokens_are_chosen(llama: TinyModel) -> None:
    """Two steps in flight need room for the logits of one."""
    engine = engine_of(llama, kernels="torch")
    forward, logits = engine._runner._model, []

    def watched(batch: Any) -> torch.Tensor:
        answer: torch.Tensor = forward(batch)
        logits.append(weakref.ref(answer))
        return answer

    engine._runner._model = watched  # type: ignore[assignment]
    engine.submit(Request("x", [1, 2, 3], greedy(5)))
    engine.step()
    assert [each() for each in logits] == [None, None]
    engine.abort("x")


@pytest.fixture(scope="module")
def pair(llama: TinyModel) -> tuple[Engine, Engine]:
    """One step after another, and overlapping; kept from example to example, with their caches."""
    config: dict[str, Any] = {"max_running": 3, "token_budget": 12, "kv_pages": 14, "page_size": 4, "max_model_len": 48}
    return engine_of(llama, "off", **config), engine_of(llama, "on", **config)


SAMPLINGS = [
    greedy(12),
    SamplingParams(temperature=0.9, seed=3, max_tokens=9, stop_token_ids=tuple(range(0, 199, 5))),
    SamplingParams(temperature=0.9, seed=4, max_tokens=7, n=2, ignore_eos=True),
    SamplingParams(temperature=0.9, seed=5, max_tokens=6, presence_penalty=1.0, min_tokens=3),
]
ACTIONS = st.one_of(
    st.tuples(st.just("submit"), st.integers(1, 22), st.sampled_from(SAMPLINGS)),
    st.tuples(st.just("abort"), st.integers(0, 8)),
    st.tuples(st.just("step"), st.integers(1, 4)),
)


def play(engine: Engine, actions: list[Any]) -> tuple[Told, set[str]]:
    """What was told, and of which requests not all."""
    found: Told = {}
    names: list[str] = []
    aborted: set[str] = set()

    def step() -> None:
        for delta in engine.step().deltas:
            assert delta.request_id not in aborted
            found.setdefault((delta.request_id, delta.choice), []).append(said(delta))
        check_pages(engine._scheduler, engine._allocator, engine._cache)

    for kind, *values in actions:
        if kind == "submit":
            length, sampling = values
            names.append(f"r{len(names)}")
            engine.submit(Request(names[-1], random_prompt(30, seed=0)[:length], sampling))
        elif kind == "abort" and names:
            name = names[values[0] % len(names)]
            aborted |= {name} if engine.abort(name) else set()
        elif kind == "step":
            for _ in range(values[0]):
                step()
    while engine.has_work:
        step()
    assert engine.stats().pages_in_use == 0
    return found, aborted


@settings(max_examples=40, deadline=None)
@given(actions=st.lists(ACTIONS, min_size=3, max_size=16))
def test_whatever_comes_and_goes_between_steps(pair: tuple[Engine, Engine], actions: list[Any]) -> None:
    (expected, gone), (found, gone_too) = (play(engine, actions) for engine in pair)
    for name, choice in expected.keys() | found.keys():
        theirs, ours = (each.get((name, choice), []) for each in (expected, found))
        shared = min(len(theirs), len(ours)) if name in gone | gone_too else max(len(theirs), len(ours))
        assert [(token, reason) for token, _, reason in ours[:shared]] == [
            (token, reason) for token, _, reason in theirs[:shared]
        ]
