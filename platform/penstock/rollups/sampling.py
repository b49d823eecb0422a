"""What waits, runs and is used at this moment: levels, which only who looks can tell later."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Row, func, select, text
from sqlalchemy.orm import Session

from penstock.jobs.states import JobState
from penstock.outbox.models import OutboxMessage
from penstock.registry.hosting_services import HEARTBEAT_SECONDS
from penstock.registry.models import Deployment, Hosting, Worker
from penstock.rollups.counting import Point, labels_of, merged
from penstock.rollups.series import SAMPLES

# By the partial indexes of jobs that wait and run, whose rows are few beside those of jobs that ended.
_STANDING: Final = text(
    """
    SELECT model_name, model_version, job_class, state, count(*) AS jobs,
        greatest(extract(epoch FROM clock_timestamp() - min(queued_at)), 0)::float AS oldest
    FROM job WHERE state IN ('queued', 'running') GROUP BY 1, 2, 3, 4
    """
)


@dataclass(frozen=True, slots=True)
class Standing:
    """How many jobs wait and run, and how old the oldest is that waits."""

    waiting: int
    running: int
    oldest_seconds: float


def standing_now(session: Session) -> Standing:
    """Of all models and classes."""
    rows = session.execute(_STANDING).all()
    waiting = [row for row in rows if row.state == JobState.QUEUED]
    running = sum(row.jobs for row in rows if row.state == JobState.RUNNING)
    return Standing(sum(row.jobs for row in waiting), running, max((row.oldest for row in waiting), default=0.0))


def sampled(session: Session, at: datetime) -> list[Point]:
    """The levels at this moment, as points of the minute `at`."""
    jobs = session.execute(_STANDING).all()
    alive = session.scalar(select(func.count()).select_from(Worker).where(_heard_of())) or 0
    outbox = session.scalar(select(func.count()).select_from(OutboxMessage)) or 0
    house = [
        _level(SAMPLES, at, {}, 1),
        _level("workers.live", at, {}, alive),
        _level("outbox.waiting", at, {}, outbox),
    ]
    return merged([*house, *_standing(jobs, at), *_hosted(session, at)])


def _standing(rows: Any, at: datetime) -> Iterator[Point]:
    for row in rows:
        labels = labels_of(row)
        if row.state == JobState.RUNNING:
            yield _level("jobs.running", at, labels, row.jobs)
        else:
            yield _level("queue.depth", at, labels, row.jobs)
            yield _level("queue.oldest_seconds", at, labels, row.oldest)


def _hosted(session: Session, at: datetime) -> Iterator[Point]:
    rows = session.execute(
        select(Deployment.model_name, Deployment.model_version, Hosting.stats)
        .join(Deployment, Deployment.id == Hosting.deployment_id)
        .join(Worker, Worker.id == Hosting.worker_id)
        .where(_heard_of(), Hosting.state == "ready")
    )
    for row in rows:
        yield from _engine(row, at)


def _engine(row: Row[Any], at: datetime) -> Iterator[Point]:
    labels = {"model": row.model_name, "version": row.model_version}
    told = {
        "kv.pages_in_use": "pages_in_use",
        "kv.pages": "pages_total",
        "batch.running": "running",
        "batch.places": "max_running",
    }
    if all(name in row.stats for name in told.values()):
        for series, name in told.items():
            yield _level(series, at, labels, row.stats[name])


def _heard_of() -> Any:
    return Worker.heartbeat_at > func.clock_timestamp() - timedelta(seconds=HEARTBEAT_SECONDS)


def _level(series: str, at: datetime, labels: dict[str, str], value: float) -> Point:
    return Point(series, at, labels, count=1, total=float(value), peak=float(value))
