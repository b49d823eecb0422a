"""A fault stays with the request that has it; what was healthy before it is healthy after."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from penstock_engine import Engine, EngineConfig, Request, SamplingParams, StepFailed

from tests.engine.driving import Run, check_pages, greedy, parity, run_all, step_once
from tests.engine.tiny import TinyModel, make_tiny, random_prompt

POISON = 0  # a token whose embedding is not a number; padding rows run this very one


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A model that answers NaN to every prompt with POISON in it."""
    folder = tmp_path_factory.mktemp("poisoned")
    model = make_tiny(folder)
    with torch.no_grad():
        model.reference.model.embed_tokens.weight[POISON] = torch.nan
        model.reference.lm_head.weight[POISON] = 0.0  # and that it hardly ever chooses itself
    model.reference.save_pretrained(folder)
    return model


def healthy_requests() -> list[Request]:
    """Of two, three and four pages: the three are padded with the null page, which padding must not have touched."""
    lengths = (20, 36, 52)
    prompts = [[token for token in random_prompt(length, seed=length) if token != POISON] for length in lengths]
    return [Request(f"ok{at}", prompt, greedy(10)) for at, prompt in enumerate(prompts)]


@pytest.mark.parametrize(
    "sampling",
    [greedy(10), SamplingParams(max_tokens=10), SamplingParams(top_k=5, top_p=0.9, max_tokens=10, logprobs=3)],
)
@pytest.mark.parametrize("place", [0, 19])
def test_nan_fails_its_own_request_alone(poisoned: TinyModel, place: int, sampling: SamplingParams) -> None:
    engine = Engine.from_folder(poisoned.folder, EngineConfig(dtype="float32"))
    prompt = random_prompt(20, seed=77)
    prompt[place] = POISON
    healthy = healthy_requests()
    run = run_all(engine, [healthy[0], Request("bad", prompt, sampling), *healthy[1:]])

    assert [(failure.request_id, failure.code) for failure in run.failed] == [("bad", "logits_not_finite")]
    assert "bad" not in run.deltas
    assert parity(poisoned, healthy, run).wrong == 0
    assert engine.stats().running == 0


def test_pages_that_held_nan_are_clean_for_their_next_owner(poisoned: TinyModel) -> None:
    """The pool is so small that the next request gets the same pages, and reads them past its own length."""
    engine = Engine.from_folder(poisoned.folder, EngineConfig(dtype="float32", kv_pages=3))
    bad = [POISON] * 40
    assert [each.request_id for each in run_all(engine, [Request("bad", bad, greedy(5))]).failed] == ["bad"]
    healthy = healthy_requests()[:1]
    found = parity(poisoned, healthy, run_all(engine, healthy))
    assert (found.wrong, found.tokens) == (0, 10)


def test_a_poisoned_prefix_is_not_cached(poisoned: TinyModel) -> None:
    engine = Engine.from_folder(poisoned.folder, EngineConfig(dtype="float32"))
    run_all(engine, [Request("bad", [POISON, *random_prompt(40, seed=1)], greedy(5))])
    stats = engine.stats()
    assert (stats.pages_cached, stats.pages_in_use) == (0, 0)


class FailOnce:
    """Stands before the model and raises once, when a given step comes; lets every other through."""

    def __init__(self, engine: Engine, at_call: int) -> None:
        self.runner, self.at_call, self.calls = engine._runner, at_call, 0
        self.forward = engine._runner._model
        self.runner._model = self  # type: ignore[assignment]

    def __call__(self, batch: Any) -> Any:
        self.calls += 1
        logits = self.forward(batch)  # K and V are written before the step fails, as on a real device
        if self.calls == self.at_call:
            raise RuntimeError("out of luck")
        return logits


@pytest.mark.parametrize("at_call", [1, 2, 3, 9])
def test_a_failed_step_names_its_requests_and_can_be_repeated(llama: TinyModel, at_call: int) -> None:
    config = EngineConfig(dtype="float32", token_budget=16, max_running=3, kv_pages=14)
    engine = Engine.from_folder(llama.folder, config)
    stem = random_prompt(37, seed=3)
    requests = [Request(f"r{n}", [*stem[: 30 + n], n], greedy(12)) for n in range(4)]
    FailOnce(engine, at_call)
    for request in requests:
        engine.submit(request)

    run = Run()
    failures: list[StepFailed] = []
    while engine.has_work:
        try:
            step_once(engine, run)
        except StepFailed as caught:
            failures.append(caught)
            check_pages(engine._scheduler, engine._allocator, engine._cache)

    (failure,) = failures
    assert isinstance(failure.cause, RuntimeError)
    assert failure.step == at_call
    assert failure.request_ids
    assert set(failure.request_ids) <= {request.id for request in requests}
    assert "out of luck" in str(failure)
    assert parity(llama, requests, run).wrong == 0


def test_suspects_can_be_aborted_after_a_failed_step(llama: TinyModel) -> None:
    """The suspect was just admitted, with a part of a cached page still to be copied."""
    engine = Engine.from_folder(llama.folder, EngineConfig(dtype="float32"))
    prompt = random_prompt(40, seed=5)
    run_all(engine, [Request("before", prompt, greedy(1))])
    good = Request("good", random_prompt(18, seed=4), greedy(8))
    FailOnce(engine, 1)
    engine.submit(good)
    engine.submit(Request("suspect", [*prompt[:25], 3, 3, 3], greedy(8)))
    with pytest.raises(StepFailed) as caught:
        engine.step()
    assert set(caught.value.request_ids) == {"good", "suspect"}
    assert engine.abort("suspect")
    run = Run()
    while engine.has_work:
        step_once(engine, run)
    assert "suspect" not in run.deltas
    assert parity(llama, [good], run).wrong == 0


class TestAbort:
    @pytest.fixture
    def engine(self, llama: TinyModel) -> Iterator[Engine]:
        engine = Engine.from_folder(llama.folder, EngineConfig(dtype="float32", max_running=2, token_budget=16))
        yield engine
        assert engine.stats().pages_in_use == 0
        assert not engine.has_work

    def test_frees_the_pages_of_one_that_runs(self, engine: Engine) -> None:
        run = Run()
        engine.submit(Request("x", random_prompt(40, seed=1), greedy(50)))
        for _ in range(5):
            step_once(engine, run)
        assert engine.stats().pages_in_use == 3
        assert engine.abort("x")
        stats = engine.stats()
        assert (stats.pages_in_use, stats.running) == (0, 0)

    def test_in_the_middle_of_a_prefill(self, engine: Engine) -> None:
        engine.submit(Request("x", random_prompt(40, seed=1), greedy(5)))
        assert engine.step().deltas == []
        assert engine.abort("x")

    def test_of_one_that_waits(self, engine: Engine) -> None:
        for name in ("a", "b", "c"):
            engine.submit(Request(name, random_prompt(4, seed=1), greedy(3)))
        engine.step()
        assert engine.stats().waiting == 1
        assert engine.abort("c")
        assert "c" not in run_all(engine).deltas

    def test_of_one_that_is_not_there(self, engine: Engine) -> None:
        assert not engine.abort("nobody")
        run_all(engine, [Request("x", [1], greedy(1))])
        assert not engine.abort("x")
