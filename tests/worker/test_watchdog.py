"""An engine process that hangs is seen, ended, and says where it hung; one that works or rests is left alone."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from penstock.jobs.journal import Journal, JournalEntry
from penstock.jobs.states import RunOutcome
from penstock_worker.messages import EngineSpec
from redis import Redis

from tests.conftest import ROOT
from tests.patience import eventually
from tests.worker.bridging import OpenBridge, opened_bridge
from tests.worker.conftest import Jobs, StartWorker, is_alive

STALL_SECONDS = 2.0
HOW = "the engine process took no step for 2 s"


@pytest.fixture
def hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes the next step of an engine process that was started in this test hang for ever."""
    file = tmp_path / "hang"
    monkeypatch.setenv("HANG_FILE", str(file))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests/worker/hang"))
    return file.touch


@pytest.fixture
def spec(model_folder: Path) -> EngineSpec:
    return EngineSpec(str(model_folder), max_running=2, kv_bytes=2**27, threads=1)


@pytest.fixture
def opened(spec: EngineSpec) -> Iterator[OpenBridge]:
    with opened_bridge(spec, stall_seconds=STALL_SECONDS) as opened:
        yield opened


def watched_until_it_ends(opened: OpenBridge) -> str:
    def look() -> str | None:
        opened.bridge.watch()
        return opened.ended[0] if opened.ended else None

    return eventually(look, "the end of the engine process")


def test_a_step_that_hangs_is_ended_and_says_where_it_hung(
    spec: EngineSpec, hang: Callable[[], None], capfd: pytest.CaptureFixture[str]
) -> None:
    with opened_bridge(spec, stall_seconds=STALL_SECONDS) as opened:  # here, so that it inherits what is captured
        jobs = [opened.job(max_tokens=900) for _ in range(2)]
        for job in jobs:
            opened.submit(job)
        eventually(lambda: all(job.entries for job in jobs), "the first tokens")
        hang()
        assert watched_until_it_ends(opened) == HOW
        assert opened.bridge.orphans() == jobs
        assert not opened.bridge.reserve()
    stack = capfd.readouterr().err
    assert "in launch_unless_told_otherwise" in stack
    assert "engine_loop.py" in stack


def test_an_idle_process_that_answers_nothing_is_ended(opened: OpenBridge) -> None:
    assert opened.bridge.pid is not None
    os.kill(opened.bridge.pid, signal.SIGSTOP)
    assert watched_until_it_ends(opened) == HOW


def test_one_that_works_and_then_rests_is_left_alone(opened: OpenBridge) -> None:
    """For some times as long as it may be silent."""
    job = opened.job(max_tokens=300)
    opened.submit(job)
    eventually(lambda: job.entries, "the first token, before which kernels may be compiled")
    until = time.monotonic() + 2 * STALL_SECONDS
    while not opened.ended and (not job.ending or time.monotonic() < until):
        opened.bridge.watch()
        time.sleep(0.02)
    assert opened.ended == []
    assert opened.bridge.lively


@pytest.mark.drill
@pytest.mark.usefixtures("deployment", "database")
def test_jobs_go_on_at_the_exact_token_after_a_step_that_hung(
    jobs: Jobs, redis: Redis, hang: Callable[[], None], start_worker: StartWorker
) -> None:
    journal: Callable[[str], list[JournalEntry]] = Journal(redis, "test").read
    worker = start_worker(engine_stall_seconds=STALL_SECONDS)
    params = {"temperature": 0.0, "ignore_eos": True, "max_tokens": 700}
    job_ids = jobs.submit_many(["Invoice", "Receipt"], params=params)
    eventually(lambda: all(len(journal(job_id)) >= 20 for job_id in job_ids), "the first tokens of both")
    assert [jobs.get(job_id).state for job_id in job_ids] == ["running"] * 2, "too fast to be disturbed"
    (engine,) = worker.children
    hang()
    eventually(lambda: not is_alive(engine), "the end of the engine that hangs")
    for job_id, prompt in zip(job_ids, ["Invoice", "Receipt"], strict=True):
        job = jobs.finished(job_id)
        first, *_, last = jobs.runs(job_id)
        assert (first.outcome, first.reason) == (RunOutcome.CRASHED, HOW)
        assert (job.state, job.own_crashes) == ("succeeded", 0)
        assert last.resumed_at_position >= 20
        entries = journal(job_id)
        assert [entry.index for entry in entries] == list(range(701))
        undisturbed = jobs.finished(jobs.submit(prompt, params=params))
        assert undisturbed.output == job.output
    assert "in launch_unless_told_otherwise" in worker.log.read_text()
