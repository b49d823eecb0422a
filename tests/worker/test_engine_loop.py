"""The loop inside the engine's process, over a real pipe, with a real engine."""

import threading
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from penstock_engine import Engine, EngineConfig
from penstock_engine.batch import ScheduleBatch
from penstock_engine.pending import Pending
from penstock_worker.engine_loop import EngineLoop
from penstock_worker.messages import Broken, Commands, FromEngine, Sampling, StepReport, Submit, decode_report, encode

PATIENCE_SECONDS = 30


@pytest.fixture(scope="module")
def engine(model_folder: Path) -> Engine:
    return Engine.from_folder(model_folder, EngineConfig(max_running=4, kv_bytes=2**25, threads=1))


class Far:
    """The worker's end of the pipe, and the loop at the other."""

    def __init__(self, connection: Connection, loop: EngineLoop) -> None:
        self._connection = connection
        self.thread = threading.Thread(target=loop.run, daemon=True)

    def tell(self, **commands: Any) -> None:
        self._connection.send_bytes(encode(Commands(**commands)))

    def hear(self) -> FromEngine:
        assert self._connection.poll(PATIENCE_SECONDS)
        return decode_report(self._connection.recv_bytes())

    def report(self) -> StepReport:
        message = self.hear()
        assert isinstance(message, StepReport)
        return message


@pytest.fixture
def far(engine: Engine) -> Iterator[Far]:
    near, other = Pipe()
    far = Far(near, EngineLoop(other, engine))
    yield far
    if far.thread.is_alive():
        far.tell(stop=True)
        far.thread.join(PATIENCE_SECONDS)
    near.close()
    other.close()


def submit(
    request_id: str,
    *,
    max_tokens: int = 3,
    output_ids: list[list[int]] | None = None,
    closed: list[int] | None = None,
    tenant: str = "",
    logprobs: int | None = None,
    **others: Any,
) -> Submit:
    greedy = {"temperature": 0.0, "seed": 1, "ignore_eos": True}
    sampling = Sampling(**greedy, max_tokens=max_tokens, logprobs=logprobs, **others)
    prompt = [5, 6, 7]
    return Submit(
        request_id, prompt, output_ids or [], sampling, "space", 0, "interactive", closed=closed or [], tenant=tenant
    )


def one_step_at_a_time(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """From now on each step waits for a release."""
    released = threading.Semaphore(0)
    launch = engine._runner.launch

    def wait_and_launch(batch: ScheduleBatch) -> Pending:
        assert released.acquire(timeout=PATIENCE_SECONDS)
        return launch(batch)

    monkeypatch.setattr(engine._runner, "launch", wait_and_launch)
    return released


def test_one_message_a_step_carries_every_requests_token(far: Far) -> None:
    far.tell(submits=[submit("a"), submit("b")])
    far.thread.start()
    reports = [far.report() for _ in range(3)]
    assert [[delta.request_id for delta in report.deltas] for report in reports] == [["a", "b"]] * 3
    assert [delta.finish_reason for delta in reports[-1].deltas] == ["length", "length"]
    assert [report.received for report in reports] == [2, 2, 2]
    assert [name for name, _ in reports[0].admitted] == ["a", "b"]


def test_an_idle_loop_answers_a_ping_without_a_step(far: Far) -> None:
    far.thread.start()
    far.tell(ping=7)
    report = far.report()
    assert (report.pong, report.deltas) == (7, [])


def test_a_resumed_request_goes_on_with_the_tokens_of_an_undisturbed_one(far: Far) -> None:
    far.tell(submits=[submit("whole", max_tokens=6)])
    far.thread.start()
    whole = [far.report().deltas[0].token_id for _ in range(6)]
    far.tell(submits=[submit("rest", max_tokens=6, output_ids=[whole[:4]])])
    assert [far.report().deltas[0].token_id for _ in range(2)] == whole[4:]


def test_a_request_that_fails_the_step_fails_alone(far: Far, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = engine._runner.launch

    def fail_with_the_poisoned(batch: ScheduleBatch) -> Pending:
        if "poisoned" in batch.request_ids:
            raise RuntimeError("a token that no kernel bears")
        return launch(batch)

    monkeypatch.setattr(engine._runner, "launch", fail_with_the_poisoned)
    far.tell(submits=[submit("poisoned"), submit("healthy", max_tokens=3)])
    far.thread.start()
    reports = [far.report()]
    while not any(delta.finish_reason for delta in reports[-1].deltas):
        reports.append(far.report())
    assert [(each.request_id, each.code) for report in reports for each in report.refusals] == [
        ("poisoned", "forward_failed")
    ]
    assert [delta.request_id for report in reports for delta in report.deltas] == ["healthy"] * 3


def test_a_broken_model_ends_the_process_and_names_no_other_job(
    far: Far, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(engine._runner, "forward", fail)
    far.tell(submits=[submit("job_of_one_tenant"), submit("job_of_another")])
    far.thread.start()
    message = far.hear()
    assert isinstance(message, Broken)
    assert message.code == "step_failed"
    assert message.message.endswith("failed with RuntimeError: the device is gone")
    far.thread.join(PATIENCE_SECONDS)
    assert not far.thread.is_alive()
    engine.abort("job_of_one_tenant")
    engine.abort("job_of_another")


def test_tenants_take_turns(model_folder: Path) -> None:
    """The second tenant's request came last and goes second: the first tenant has had more by then."""
    alone = Engine.from_folder(model_folder, EngineConfig(max_running=1, kv_bytes=2**25, threads=1, fair_quantum=1))
    near, other = Pipe()
    far = Far(near, EngineLoop(other, alone))
    far.tell(
        submits=[submit("a1", tenant="a"), submit("a2", tenant="a"), submit("a3", tenant="a"), submit("b1", tenant="b")]
    )
    far.thread.start()
    reports = [far.report() for _ in range(4 * 3)]
    assert [name for report in reports for name, _ in report.admitted] == ["a1", "b1", "a2", "a3"]
    far.tell(stop=True)
    far.thread.join(PATIENCE_SECONDS)
    near.close()
    other.close()


def test_one_choice_can_be_dropped_and_places_are_counted_by_choice(
    far: Far, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = one_step_at_a_time(engine, monkeypatch)
    far.tell(submits=[submit("x", n=3, max_tokens=4, closed=[2])])
    far.thread.start()
    steps.release()
    first = far.report()
    assert first.received == 2
    assert [delta.choice for delta in first.deltas] == [0, 1]
    far.tell(aborts=[("x", 0)])
    steps.release(3)  # the step that may have begun, and two that know of the drop
    left = [far.report() for _ in range(3)]
    assert [delta.choice for delta in left[-1].deltas] == [1]
    assert [delta.finish_reason for delta in left[-1].deltas] == ["length"]


def test_a_choice_that_was_complete_is_told_at_once(far: Far) -> None:
    far.tell(submits=[submit("x", n=2, max_tokens=2, output_ids=[[40, 41], [40]])])
    far.thread.start()
    report = far.report()
    assert [(each.choice, each.finish_reason) for each in report.ended] == [(0, "length")]
    assert [(delta.choice, delta.finish_reason) for delta in report.deltas] == [(1, "length")]


def test_a_prompts_log_probabilities_and_the_likeliest_tokens_come_along(far: Far) -> None:
    far.tell(submits=[submit("x", max_tokens=1, prompt_logprobs=1, logprobs=2)])
    far.thread.start()
    report = far.report()
    (scores,) = report.prompt_scores
    assert (scores.start, len(scores.logprobs), [len(tops) for tops in scores.top_logprobs]) == (1, 2, [1, 1])
    (delta,) = report.deltas
    assert len(delta.top_logprobs) == 2
    assert delta.top_logprobs[0] == (delta.token_id, delta.logprob)


def test_overlapping_steps_are_reported_as_they_end(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a ping and an abort between them, and a stop while one is in flight."""
    engine = Engine.from_folder(model_folder, EngineConfig(max_running=4, kv_bytes=2**25, threads=1, overlap="on"))
    launches = one_step_at_a_time(engine, monkeypatch)
    near, other = Pipe()
    far = Far(near, EngineLoop(other, engine))
    far.tell(submits=[submit("a", max_tokens=6), submit("b", max_tokens=50)])
    far.thread.start()
    launches.release(2)
    first = far.report()
    assert (first.step, first.received, [delta.request_id for delta in first.deltas]) == (1, 2, ["a", "b"])
    far.tell(ping=7, aborts=[("b", None)])
    launches.release(4)
    rest = [far.report() for _ in range(5)]  # of the next the launch may have begun, and the one behind it
    assert [report.step for report in rest] == [2, 3, 4, 5, 6]
    assert (rest[-1].pong, rest[-1].free_slots) == (7, 4)
    assert [delta.request_id for report in rest[2:] for delta in report.deltas] == ["a"] * 3
    assert rest[-1].deltas[-1].finish_reason == "length"

    far.tell(submits=[submit("c", max_tokens=50)])
    launches.release(2)
    assert far.report().deltas
    far.tell(stop=True)
    launches.release(2)  # the one that may wait already, and the one of the round that hears of the stop
    far.thread.join(PATIENCE_SECONDS)
    assert not far.thread.is_alive()
    assert engine.abort("c")
    assert (engine.has_work, engine.stats().pages_in_use) == (False, 0)
    near.close()
    other.close()
