"""A fault stays with the request that has it; what was healthy before it is healthy after."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from penstock_engine import Engine, EngineConfig, InvalidRequest, Request, SamplingParams, StepFailed
from penstock_engine.batch import ScheduleBatch
from penstock_engine.config import Overlap
from penstock_engine.pending import Pending

from tests.engine.driving import Run, check_pages, greedy, parity, run_all, step_once
from tests.engine.tiny import TinyModel, make_tiny, random_prompt

BOTH: tuple[Overlap, ...] = ("off", "on")
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
@pytest.mark.parametrize(("place", "overlap"), [(0, "off"), (19, "off"), (19, "on")])
def test_nan_fails_its_own_request_alone(
    poisoned: TinyModel, place: int, overlap: Overlap, sampling: SamplingParams
) -> None:
    engine = Engine.from_folder(poisoned.folder, EngineConfig(dtype="float32", overlap=overlap))
    prompt = random_prompt(20, seed=77)
    prompt[place] = POISON
    healthy = healthy_requests()
    run = run_all(engine, [healthy[0], Request("bad", prompt, sampling), *healthy[1:]])

    assert [(failure.request_id, failure.code) for failure in run.failed] == [("bad", "logits_not_finite")]
    assert "bad" not in run.deltas
    assert parity(poisoned, healthy, run).wrong == 0
    assert engine.stats().running == 0


@pytest.mark.parametrize("overlap", BOTH)
def test_pages_that_held_nan_are_clean_for_their_next_owner(poisoned: TinyModel, overlap: Overlap) -> None:
    """The pool is so small that the next request gets the same pages, and reads them past its own length."""
    engine = Engine.from_folder(poisoned.folder, EngineConfig(dtype="float32", kv_pages=3, overlap=overlap))
    bad = [POISON] * 40
    assert [each.request_id for each in run_all(engine, [Request("bad", bad, greedy(5))]).failed] == ["bad"]
    healthy = healthy_requests()[:1]
    found = parity(poisoned, healthy, run_all(engine, healthy))
    assert (found.wrong, found.tokens) == (0, 10)


def test_a_token_that_ran_in_vain_leaves_no_nan_behind(poisoned: TinyModel) -> None:
    """The output ends with the poison, which nobody knew when the next step was launched."""
    engine = Engine.from_folder(poisoned.folder, EngineConfig(dtype="float32", kv_pages=3, overlap="on"))
    sampling = SamplingParams(temperature=0, max_tokens=5, stop_token_ids=(POISON,), logit_bias=((POISON, 100.0),))
    run = run_all(engine, [Request("x", healthy_requests()[0].prompt_ids, sampling)])
    assert (run.tokens("x"), run.finish_reason("x"), engine.progress) == ([POISON], "stop", 2)
    assert not any(engine._runner._pool.pages(layer).isnan().any() for layer in range(3))


def test_a_poisoned_prefix_is_not_cached(poisoned: TinyModel) -> None:
    engine = Engine.from_folder(poisoned.folder, EngineConfig(dtype="float32"))
    run_all(engine, [Request("bad", [POISON, *random_prompt(40, seed=1)], greedy(5))])
    stats = engine.stats()
    assert (stats.pages_cached, stats.pages_in_use) == (0, 0)


class Dead:
    """Stands before the model and raises in two calls on end: a step, and the probe that follows it."""

    def __init__(self, engine: Engine, at_call: int) -> None:
        self.at_calls, self.calls = (at_call, at_call + 1), 0
        self.forward = engine._runner._model
        engine._runner._model = self  # type: ignore[assignment]

    def __call__(self, batch: Any) -> Any:
        self.calls += 1
        logits = self.forward(batch)  # K and V are written before the step fails, as on a real device
        if self.calls in self.at_calls:
            raise RuntimeError("out of luck")
        return logits


class Saboteur:
    """Stands before the runner and has a step fail where `fault` finds one in the batch.

    When its result is asked for, after K and V are written; or at its launch, before they are.
    """

    def __init__(
        self, engine: Engine, fault: Callable[[ScheduleBatch], Exception | None], *, before: bool = False
    ) -> None:
        self.fault, self.launch, self.before = fault, engine._runner.launch, before
        self.tokens: list[int] = []  # of each attempt
        engine._runner.launch = self  # type: ignore[method-assign]

    def __call__(self, batch: ScheduleBatch) -> Pending:
        self.tokens.append(sum(batch.extend_lens))
        error = self.fault(batch)
        if error and self.before:
            raise error
        pending = self.launch(batch)
        if error:
            pending.result = partial(fail, error)  # type: ignore[method-assign]
        return pending


def fail(error: Exception) -> Any:
    raise error


def ten_requests() -> list[Request]:
    stem = random_prompt(37, seed=3)
    return [Request(f"r{n}", [*stem[: 10 + 3 * n], n], greedy(12)) for n in range(10)]


@pytest.mark.parametrize("overlap", BOTH)
@pytest.mark.parametrize("after", [0, 1, 5])
@pytest.mark.parametrize("poison", [{"r0"}, {"r9"}, {"r3", "r4", "r8"}])
def test_a_failing_step_is_searched_for_those_at_fault(
    llama: TinyModel, poison: set[str], after: int, overlap: Overlap
) -> None:
    """They alone fail, in their prefill or when `after` tokens are out; the others miss nothing."""
    config = EngineConfig(dtype="float32", token_budget=64, kv_pages=60, overlap=overlap)
    engine = Engine.from_folder(llama.folder, config)

    def fault(batch: ScheduleBatch) -> Exception | None:
        guilty = any(each.request.id in poison and each.length - each.prompt_len >= after for each in batch.generations)
        return ValueError("bad luck") if guilty else None

    saboteur = Saboteur(engine, fault, before=after == 0)
    requests = ten_requests()
    run = run_all(engine, requests)
    assert {(each.request_id, each.code) for each in run.failed} == {(name, "forward_failed") for name in poison}
    assert all("bad luck" in each.message for each in run.failed)
    healthy = [each for each in requests if each.id not in poison]
    assert all(len(run.tokens(each.id)) == 12 for each in healthy)
    assert {len(run.deltas.get(name, [])) for name in poison} == {after}
    found = parity(llama, healthy, run)
    assert (found.wrong, found.worst_logprob < 1e-4) == (0, True)
    assert len(saboteur.tokens) <= len(run.steps) + 10 * len(poison)  # a search in halves, not one by one
    assert engine.stats().pages_in_use == 0


@pytest.mark.parametrize("overlap", BOTH)
def test_a_fault_that_does_not_come_back_harms_nobody(llama: TinyModel, overlap: Overlap) -> None:
    engine = Engine.from_folder(llama.folder, EngineConfig(dtype="float32", token_budget=64, overlap=overlap))
    faults = iter([None, ValueError("once"), None, None, RuntimeError("and again")])
    Saboteur(engine, lambda _: next(faults, None))
    requests = ten_requests()
    run = run_all(engine, requests)
    assert run.failed == []
    assert parity(llama, requests, run).wrong == 0


@pytest.mark.parametrize(
    ("error", "overlap"),
    [
        (torch.OutOfMemoryError("no room"), "off"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "off"),
        (MemoryError("no room"), "on"),
    ],
)
def test_where_memory_lacks_the_batch_shrinks(llama: TinyModel, error: Exception, overlap: Overlap) -> None:
    """No more than eleven tokens fit: prompts are cut smaller, nobody fails, and the next steps are small at once."""
    engine = Engine.from_folder(llama.folder, EngineConfig(dtype="float32", max_running=8, overlap=overlap))
    saboteur = Saboteur(engine, lambda batch: error if sum(batch.extend_lens) > 11 else None)
    requests = [*ten_requests(), Request("long", random_prompt(120, seed=8), greedy(4))]
    run = run_all(engine, requests)
    assert run.failed == []
    assert parity(llama, requests, run).wrong == 0
    assert max(saboteur.tokens) > 100
    assert max(counts.tokens for counts in run.steps[10:]) <= 22


def test_what_lacks_memory_even_alone_fails_alone(llama: TinyModel) -> None:
    engine = Engine.from_folder(llama.folder, EngineConfig(dtype="float32"))
    Saboteur(engine, lambda batch: MemoryError("no room") if "r2" in batch.request_ids else None)
    requests = ten_requests()
    run = run_all(engine, requests)
    assert [(each.request_id, each.code) for each in run.failed] == [("r2", "out_of_memory")]
    assert parity(llama, [each for each in requests if each.id != "r2"], run).wrong == 0


def test_progress_stands_still_while_nothing_runs(llama: TinyModel) -> None:
    engine = Engine.from_folder(llama.folder, EngineConfig(dtype="float32"))
    Dead(engine, 2)
    engine.submit(Request("x", [1, 2, 3], greedy(3)))
    seen = [engine.progress]
    for expected in (False, True, False):
        if expected:
            with pytest.raises(StepFailed):
                engine.step()
        else:
            engine.step()
        seen.append(engine.progress)
    assert seen == [0, 1, 1, 2]


@pytest.mark.parametrize("overlap", BOTH)
@pytest.mark.parametrize("at_call", [1, 2, 3, 9])
def test_a_dead_model_is_nobodys_fault_and_the_step_can_be_repeated(
    llama: TinyModel, at_call: int, overlap: Overlap
) -> None:
    config = EngineConfig(dtype="float32", token_budget=16, max_running=3, kv_pages=14, overlap=overlap)
    engine = Engine.from_folder(llama.folder, config)
    stem = random_prompt(37, seed=3)
    requests = [Request(f"r{n}", [*stem[: 30 + n], n], greedy(12)) for n in range(4)]
    Dead(engine, at_call)
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


@pytest.mark.parametrize("overlap", BOTH)
def test_suspects_can_be_aborted_after_a_failed_step(llama: TinyModel, overlap: Overlap) -> None:
    """The suspect was just admitted, with a part of a cached page still to be copied."""
    engine = Engine.from_folder(llama.folder, EngineConfig(dtype="float32", overlap=overlap))
    prompt = random_prompt(40, seed=5)
    run_all(engine, [Request("before", prompt, greedy(1))])
    good = Request("good", random_prompt(18, seed=4), greedy(8))
    Dead(engine, 1)
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


class TestDeadline:
    @pytest.fixture
    def engine(self, llama: TinyModel) -> Iterator[Engine]:
        engine = Engine.from_folder(llama.folder, EngineConfig(dtype="float32", max_running=2, token_budget=16))
        engine._clock = lambda: 100.0
        yield engine
        assert engine.stats().pages_in_use == 0

    def test_ends_what_runs_and_what_waits(self, engine: Engine) -> None:
        deadlines = [("runs", 101.0), ("no deadline", None), ("waits", 101.0), ("has time", 500.0)]
        requests = [
            Request(name, random_prompt(5, seed=at), greedy(9), deadline=at_time)
            for at, (name, at_time) in enumerate(deadlines)
        ]
        run = Run()
        for request in requests:
            engine.submit(request)
        for _ in range(3):
            step_once(engine, run)
        assert run.failed == []
        assert engine._scheduler._next_deadline == 101.0
        engine._clock = lambda: 101.0
        step_once(engine, run)
        assert {each.code for each in run.failed} == {"deadline_exceeded"}
        assert sorted(each.request_id for each in run.failed) == ["runs", "waits"]
        assert "by its deadline, 101.0" in run.failed[0].message
        assert engine._scheduler._next_deadline == 500.0
        while engine.has_work:
            step_once(engine, run)
        ended = {name for name in run.deltas if run.finish_reason(name) == "length"}
        assert ended == {"no deadline", "has time"}

    def test_fails_all_choices_at_once(self, engine: Engine) -> None:
        engine.submit(Request("x", random_prompt(5, seed=1), SamplingParams(n=3, max_tokens=50), deadline=101.0))
        engine.step()
        engine._clock = lambda: 102.0
        output = engine.step()
        assert [(each.request_id, each.code) for each in output.failed] == [("x", "deadline_exceeded")]
        assert output.deltas == []
        assert not engine.has_work
        engine.submit(Request("x", [1], greedy(1)))
        run_all(engine)

    def test_met_in_time_is_no_failure(self, engine: Engine) -> None:
        run = run_all(engine, [Request("x", [1, 2], greedy(3), deadline=101.0)])
        engine._clock = lambda: 102.0
        assert engine.step().failed == run.failed == []


@pytest.mark.parametrize(("choices", "budget", "each"), [(1, 25, 5), (3, 36, 5), (1, 400, 12)])
def test_a_token_budget_ends_the_output(llama: TinyModel, choices: int, budget: int, each: int) -> None:
    engine = Engine.from_folder(llama.folder, EngineConfig(dtype="float32"))
    sampling = SamplingParams(n=choices, max_tokens=12, ignore_eos=True, seed=5)
    engine.submit(Request("x", random_prompt(20, seed=1), sampling, token_budget=budget))
    deltas = []
    while engine.has_work:
        deltas += engine.step().deltas
    ends = [(delta.choice, delta.position, delta.finish_reason) for delta in deltas if delta.finish_reason]
    assert sorted(ends) == [(choice, each - 1, "length") for choice in range(choices)]


def test_a_token_budget_must_leave_a_token_for_each_choice(llama: TinyModel) -> None:
    engine = Engine.from_folder(llama.folder, EngineConfig(dtype="float32"))
    with pytest.raises(InvalidRequest, match="must be at least 23") as caught:
        engine.submit(Request("x", random_prompt(20, seed=1), SamplingParams(n=3), token_budget=22))
    assert caught.value.field == "token_budget"


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
