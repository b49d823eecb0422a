"""A bridge with a real engine process at its other end, and jobs for it."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from penstock.jobs.journal import Journal
from penstock.jobs.lease import Claim
from penstock.jobs.models import Job
from penstock.registry.tokenizer import ModelTokenizer
from penstock_worker.bridge import Bridge
from penstock_worker.journal_writer import JournalWriter
from penstock_worker.messages import EngineSpec
from penstock_worker.requests import request_of
from penstock_worker.running import RunningJob
from redis import Redis

from tests.worker.conftest import START_SECONDS


class OpenBridge:
    """A bridge whose reader runs, and jobs for it. `ended` is how its process ended, once it has."""

    def __init__(self, bridge: Bridge, folder: Path) -> None:
        self.bridge = bridge
        self.ended: list[str] = []
        self._tokenizer = ModelTokenizer.from_folder(folder)
        self._count = 0

    def job(self, max_tokens: int, *, seconds_left: float | None = None, **others: Any) -> RunningJob:
        """A job that was just claimed; `others` are further parameters."""
        self._count += 1
        params = {"temperature": 0.0, "max_tokens": max_tokens, "ignore_eos": True} | others
        row = Job(
            id=f"job_{self._count}", tenant_id="ten", params=params, seed=1, priority=0, job_class=0, input={}, runs=1
        )
        claim = Claim(row, 1, [], seconds_left=seconds_left)
        job = RunningJob(claim, claimed_at=time.monotonic(), lease_until=time.monotonic() + 60)
        job.restore([], self._tokenizer, [5, 6, 7])
        return job

    def submit(self, job: RunningJob) -> None:
        assert self.bridge.reserve()
        assert self.bridge.submit(job, request_of(job))


def idle_writer() -> JournalWriter:
    """One that is marked only, and never runs."""
    return JournalWriter(Journal(Redis(port=1), "nobody"), linger_seconds=1)


@contextmanager
def opened_bridge(spec: EngineSpec, *, stall_seconds: float = 60) -> Iterator[OpenBridge]:
    """A bridge to an engine process that is ready; it is stopped at the end, if it still runs."""
    bridge = Bridge(spec, idle_writer(), places=spec.max_running, stall_seconds=stall_seconds)
    opened = OpenBridge(bridge, Path(spec.folder))
    started = threading.Event()

    def own() -> None:  # Linux ends the process with the thread that started it
        bridge.start()
        started.set()
        opened.ended.append(bridge.read())

    thread = threading.Thread(target=own)
    thread.start()
    assert started.wait(START_SECONDS)
    yield opened
    bridge.stop()
    thread.join(30)
    assert not thread.is_alive()
