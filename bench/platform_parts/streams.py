"""A thousand readers held by one web process: what they cost it, and whom else."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from bench.platform_parts.clients import Caller, Latency, Readers, at_once, timed
from bench.platform_parts.house import House, null_worker, until
from bench.platform_parts.submits import body


@dataclass(frozen=True)
class Crowd:
    """How many read, how many of their jobs run at once, and for how many seconds each state is looked at."""

    readers: int = 1000
    streaming: int = 50
    step_seconds: float = 0.04
    look_seconds: float = 8.0
    submits_per_second: int = 10

    @property
    def tokens(self) -> int:
        """Of each job: it streams through both looks."""
        return int(2.5 * self.look_seconds / self.step_seconds)

    @property
    def web_threads(self) -> int:
        """Three quarters of a web process's threads may be streams."""
        return min(int(self.readers / 0.75) + 16, 2000)


@dataclass(frozen=True)
class Look:
    """One state, looked at for a while. CPU is a share of one core, memory is MiB."""

    cpu: dict[str, float]
    mebibytes: dict[str, float]
    submit_ms: Latency
    tokens_per_second: float  # that readers got


def measure_streams(house: House, crowd: Crowd) -> dict[str, Any]:
    """Nobody reads; all read and nothing happens; some jobs stream; the same with no reader left."""
    looks: dict[str, Look] = {}
    readers = Readers(house)
    with house.front(web_threads=crowd.web_threads):
        looks["no readers"] = _look(house, crowd)
        house.forget_jobs()
        job_ids = _submit(house, crowd)
        with readers.reading(job_ids):
            took = timed(until, lambda: readers.heard == crowd.readers, "all readers' streams")
            looks["idle readers"] = _look(house, crowd, lambda: readers.tokens)
            with house.worker(*null_worker(crowd.step_seconds), worker_slots=crowd.streaming):
                until(lambda: house.count("running") >= crowd.streaming, "streaming jobs")
                looks["streaming readers"] = _look(house, crowd, lambda: readers.tokens)
                readers.close()
                looks["streaming, no readers"] = _look(house, crowd)
    assert not readers.failed, f"{readers.failed} readers got no stream"
    return {
        **asdict(crowd),
        "web_threads": crowd.web_threads,
        "seconds_to_connect": round(took, 1),
        "kibibytes_per_reader": _kibibytes_per_reader(looks, crowd),
        "worker_cpu_over_without_readers": _worker_ratio(looks),
        "looks": {name: asdict(look) for name, look in looks.items()},
    }


def _look(house: House, crowd: Crowd, tokens: Callable[[], int] = lambda: 0) -> Look:
    """What is taken, while one client submits a few jobs a second beside it."""
    before, had = house.usage(), tokens()
    seconds: list[float] = []
    with Caller(house) as caller:
        deadline = time.perf_counter() + crowd.look_seconds
        while time.perf_counter() < deadline:
            due = time.perf_counter() + 1 / crowd.submits_per_second
            seconds.append(timed(caller.submit, body(0)))
            time.sleep(max(due - time.perf_counter(), 0.0))
    after, has = house.usage(), tokens()
    rate = (has - had) / (after.at - before.at)
    return Look(after.shares_since(before), after.mebibytes, Latency.of(seconds), round(rate, 1))


def _submit(house: House, crowd: Crowd) -> list[str]:
    job_ids: list[str] = []

    def some(caller: Caller, number: int) -> list[float]:
        for at in range(number, crowd.readers, 4):
            job_ids.append(caller.submit(body(at, crowd.tokens))["id"])
        return []

    at_once(house, 4, some)
    return job_ids


def _kibibytes_per_reader(looks: dict[str, Look], crowd: Crowd) -> float:
    grown = looks["idle readers"].mebibytes["web"] - looks["no readers"].mebibytes["web"]
    return round(grown * 1024 / crowd.readers, 1)


def _worker_ratio(looks: dict[str, Look]) -> float:
    with_, without = (looks[name].cpu["worker"] for name in ("streaming readers", "streaming, no readers"))
    return round(with_ / max(without, 0.001), 3)
