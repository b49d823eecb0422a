"""Rollbacks and promotions under steady submits: real processes and services, an engine that computes nothing.

How quickly jobs are routed back is told by the database's clock alone, from the end of the last failed job that the
verdict counted to the first job that went to the champion after the verdict and after the last one that did not. The
pause between two submits is part of it.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from penstock.auth.audit import Actor, ActorKind
from penstock.rollouts import services
from penstock.rollouts.models import Rollout
from penstock.rollouts.policy import Policy
from sqlalchemy import text

from bench.platform_parts.clients import Caller, Latency
from bench.platform_parts.house import MODEL_NAME, House, job_body, null_worker, until

STEP_SECONDS: Final = 0.001
PAUSE_SECONDS: Final = 0.01
TOKENS: Final = 8
LATE_SECONDS: Final = 1.0
OPERATOR: Final = Actor(ActorKind.SYSTEM, "bench", "the bench of gates", None, ())
POLICY: Final = Policy.model_validate_json(
    """{"offline": null, "shadow": null, "latency": null, "canary": {"steps": [
        {"share": 0.5, "error_margin": 0.05, "slow_margin": 0.05, "minimum_jobs": 1000}]}}"""
)
"""Half of the jobs, so that verdicts fall soon; no promotion but an operator's."""
_BACK: Final = text(
    """WITH verdict AS (
        SELECT decided_at, jobs FROM decision WHERE rollout_id = :rollout ORDER BY number DESC LIMIT 1
    ), failed AS (
        SELECT max(job.finished_at) AS last FROM assignment JOIN job ON job.id = assignment.job_id, verdict
        WHERE rollout_id = :rollout AND arm = 'candidate' AND job.state = 'failed'
            AND assignment.counted_at <= verdict.decided_at
    ), tried AS (
        SELECT max(job.created_at) AS last FROM assignment JOIN job ON job.id = assignment.job_id
        WHERE rollout_id = :rollout AND arm = 'candidate'
    )
    SELECT failed.last AS failed, min(job.created_at) AS back, verdict.decided_at, verdict.jobs
    FROM job, failed, tried, verdict WHERE job.created_at > greatest(tried.last, verdict.decided_at)
    GROUP BY failed.last, verdict.decided_at, verdict.jobs"""
)
_STATES: Final = text(
    """SELECT job.state, coalesce(job.error->>'code', '') AS code, count(*),
        count(*) FILTER (WHERE finished_at - created_at > make_interval(secs => :late)) AS late
    FROM job WHERE created_at >= :since GROUP BY 1, 2"""
)


@dataclass(frozen=True)
class Rollback:
    """`seconds` from the last failed job's end to the first that was routed back; `verdict` to the verdict."""

    seconds: float
    verdict: float
    rerouted: int


@dataclass
class Steady:
    """A thread that submits a job every so often, and counts those that were taken."""

    house: House
    taken: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def going(self) -> Iterator["Steady"]:
        """Submits while the block runs."""
        thread = threading.Thread(target=self._submit)
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join()

    def _submit(self) -> None:
        body = job_body("Invoice 4711 of the bench", TOKENS)
        with Caller(self.house) as caller:
            while not self._stop.wait(PAUSE_SECONDS):
                caller.submit(body)
                self.taken += 1


def measured(house: House, candidate: Path, rollbacks: int, promotions: int) -> dict[str, Any]:
    """Both, with a front that runs already; `candidate` is the folder of version 2."""
    with house.worker(*null_worker(STEP_SECONDS, candidate)):
        back = _rolled_back(house, rollbacks)
    with house.worker(*null_worker(STEP_SECONDS)):
        return {"rollback": back, "promotion": _promoted(house, promotions)}


def _rolled_back(house: House, count: int) -> dict[str, Any]:
    since = _now(house)
    with Steady(house).going() as steady:
        found = [_roll_back(house) for _ in range(count)]
    states = _settled(house, since)
    failed = sum(number for (state, code), (number, _) in states.items() if state == "failed")
    own = states.get(("failed", "logits_not_finite"), (0, 0))[0]
    return {
        "rollbacks": count,
        "ms from the last failed job's end to the first routed back": _latency([each.seconds for each in found]),
        "ms from the last failed job's end to the verdict": _latency([each.verdict for each in found]),
        "jobs": steady.taken,
        "rerouted": sum(each.rerouted for each in found),
        "failed by the candidate itself": own,
        "failed by the switch": failed - own,
        "lost": steady.taken - sum(number for number, _ in states.values()),
    }


def _roll_back(house: House) -> Rollback:
    rollout = _begin(house, "2")
    until(lambda: _state(house, rollout) == "rolled_back", "a rollback", pause=0.05)
    time.sleep(5 * PAUSE_SECONDS)  # the next jobs come
    with house.database.transaction() as session:
        row = session.execute(_BACK, {"rollout": rollout}).one()
    seconds, verdict = (row.back - row.failed).total_seconds(), (row.decided_at - row.failed).total_seconds()
    return Rollback(seconds, verdict, int(row.jobs.get("rerouted", {}).get("count", 0)))


def _promoted(house: House, count: int) -> dict[str, Any]:
    since = _now(house)
    versions = ["2", "1"]
    with Steady(house).going() as steady:
        for at in range(count):
            rollout = _begin(house, versions[at % 2])
            until(lambda begun=rollout: _candidates(house, begun) > 0, "a job of the canary")  # type: ignore[misc]
            with house.database.transaction() as session:
                services.promote(session, rollout, OPERATOR, "the bench")
            time.sleep(LATE_SECONDS / 2)
    states = _settled(house, since)
    succeeded = sum(number for (state, _), (number, _) in states.items() if state == "succeeded")
    return {
        "promotions": count,
        "jobs": steady.taken,
        "failed": sum(number for number, _ in states.values()) - succeeded,
        "took more than a second": sum(late for _, late in states.values()),
        "lost": steady.taken - sum(number for number, _ in states.values()),
    }


def _begin(house: House, version: str) -> str:
    with house.database.transaction() as session:
        return services.start(session, MODEL_NAME, version, POLICY, OPERATOR).id


def _state(house: House, rollout: str) -> str:
    with house.database.transaction() as session:
        return session.get_one(Rollout, rollout).state


def _candidates(house: House, rollout: str) -> int:
    asked = text("SELECT count(*) FROM assignment WHERE rollout_id = :rollout AND arm = 'candidate'")
    with house.database.transaction() as session:
        return int(session.scalar(asked, {"rollout": rollout}) or 0)


def _now(house: House) -> datetime:
    with house.database.transaction() as session:
        now: datetime = session.scalars(text("SELECT clock_timestamp()")).one()
    return now


def _settled(house: House, since: datetime) -> dict[tuple[str, str], tuple[int, int]]:
    """Once every job has ended: how many of each state and error, and how many of those took long."""
    until(lambda: house.count("queued", "running") == 0, "the last jobs")
    with house.database.transaction() as session:
        rows = session.execute(_STATES, {"since": since, "late": LATE_SECONDS}).all()
    return {(state, code): (number, late) for state, code, number, late in rows}


def _latency(seconds: list[float]) -> dict[str, float]:
    told = Latency.of(seconds)
    return {"p50": told.p50, "p99": told.p99, "longest": round(1000 * max(seconds), 2)}
