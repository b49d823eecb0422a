"""The loop inside the engine's process, over a real pipe, with a real engine."""

import threading
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from penstock_engine import Engine, EngineConfig
from penstock_engine.batch import ScheduleBatch, StepSamples
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


def submit(request_id: str, *, max_tokens: int = 3, output_ids: list[int] | None = None) -> Submit:
    sampling = Sampling(temperature=0.0, seed=1, max_tokens=max_tokens, ignore_eos=True, logprobs=None)
    return Submit(request_id, [5, 6, 7], [output_ids or []], sampling, "tenant", 0, "interactive")


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
    far.tell(submits=[submit("rest", max_tokens=6, output_ids=whole[:4])])
    assert [far.report().deltas[0].token_id for _ in range(2)] == whole[4:]


def test_a_request_that_fails_the_step_fails_alone(far: Far, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    run = engine._runner.run

    def fail_with_the_poisoned(batch: ScheduleBatch) -> StepSamples:
        if "poisoned" in batch.request_ids:
            raise RuntimeError("a token that no kernel bears")
        return run(batch)

    monkeypatch.setattr(engine._runner, "run", fail_with_the_poisoned)
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
    def fail(_batch: object) -> None:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(engine._runner, "_model", fail)
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
