"""What workers read and write about themselves: who lives, what each should host, and how far each deployment has come.

Only the database's clock judges whether a worker lives. Takes a session, never commits.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from penstock.registry.models import Deployment, Hosting, Worker

HEARTBEAT_SECONDS: Final = 15.0
"""A worker whose last heartbeat is older than this does not count as live."""


class HostingState(StrEnum):
    """How a deployment stands on one worker. Only a `ready` one takes jobs; a `cold` one is loaded when one waits."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    UNLOADING = "unloading"
    COLD = "cold"


@dataclass(frozen=True, slots=True)
class WorkerCard:
    """Who a worker is, as it registers. `models` None is all of them."""

    id: str
    hostname: str
    pid: int
    device: str
    slots: int
    file_jobs: int = 0
    labels: tuple[str, ...] = ()
    models: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class HostingReport:
    """What a worker says of one deployment. `progress` is 0 to 1; `error` says why it failed."""

    deployment_id: str
    state: HostingState
    free_slots: int = 0
    progress: float = 0.0
    error: str | None = None
    stats: dict[str, Any] = field(default_factory=dict)


def register_worker(session: Session, card: WorkerCard) -> None:
    """Add the worker, or take its row over afresh: not draining, hosting nothing, heart beating now."""
    session.execute(delete(Hosting).where(Hosting.worker_id == card.id))
    fresh = {
        "hostname": card.hostname,
        "pid": card.pid,
        "device": card.device,
        "slots": card.slots,
        "file_jobs": card.file_jobs,
        "labels": list(card.labels),
        "models": None if card.models is None else list(card.models),
        "draining": False,
        "started_at": func.clock_timestamp(),
        "heartbeat_at": func.clock_timestamp(),
    }
    session.execute(
        upsert(Worker).values(id=card.id, **fresh).on_conflict_do_update(index_elements=[Worker.id], set_=fresh)
    )


@dataclass(frozen=True, slots=True)
class Heard:
    """What a worker learns by its heartbeat: whether an operator wants it to drain."""

    drain_requested: bool


def heartbeat(session: Session, worker_id: str, *, draining: bool | None = None, claimed: bool = False) -> Heard | None:
    """Say that the worker lives (and, where given, whether it drains, and that it claimed a job since the last beat).

    None when its row is gone: register again.
    """
    values: dict[str, Any] = {"heartbeat_at": func.clock_timestamp()}
    if draining is not None:
        values["draining"] = draining
    if claimed:
        values["last_claim_at"] = func.clock_timestamp()
    asked = Worker.drain_requested_at.is_not(None)
    beat = session.scalars(update(Worker).where(Worker.id == worker_id).values(values).returning(asked)).one_or_none()
    return Heard(beat) if beat is not None else None


def remove_worker(session: Session, worker_id: str) -> None:
    """Take the worker away, with everything that it hosts."""
    session.execute(delete(Worker).where(Worker.id == worker_id))


def expire_dead_workers(session: Session, seconds: float) -> list[str]:
    """Take away workers that were silent for `seconds`; answers with their ids. A locked row waits its turn."""
    dead = (
        select(Worker.id)
        .where(Worker.heartbeat_at < func.clock_timestamp() - timedelta(seconds=seconds))
        .with_for_update(skip_locked=True)
    )
    return list(session.scalars(delete(Worker).where(Worker.id.in_(dead)).returning(Worker.id)))


def wanted_deployments(session: Session, names: Collection[str] | None = None) -> list[Deployment]:
    """What workers should host now, oldest first: of the models `names` alone, or of all when it is None.

    A draining deployment is wanted until its last job has ended.
    """
    query = (
        select(Deployment)
        .where(Deployment.state.in_(("active", "draining")))
        .order_by(Deployment.created_at, Deployment.id)
    )
    if names is not None:
        query = query.where(Deployment.model_name.in_(names))
    return list(session.scalars(query))


def report(session: Session, worker_id: str, news: HostingReport) -> None:
    """Write how a deployment stands on the worker. The first `ready` of all is kept on the deployment itself.

    Raises `sqlalchemy.exc.IntegrityError` when the worker was expired meanwhile (see `heartbeat`).
    """
    values = {
        "state": news.state.value,
        "free_slots": news.free_slots,
        "progress": news.progress,
        "error": news.error,
        "stats": news.stats,
        "updated_at": func.clock_timestamp(),
    }
    ready = news.state is HostingState.READY
    since = {"ready_at": func.coalesce(Hosting.ready_at, func.clock_timestamp()) if ready else None}
    session.execute(
        upsert(Hosting)
        .values(worker_id=worker_id, deployment_id=news.deployment_id, **values)
        .values(ready_at=func.clock_timestamp() if ready else None)
        .on_conflict_do_update(index_elements=[Hosting.worker_id, Hosting.deployment_id], set_=values | since)
    )
    if ready:
        session.execute(
            update(Deployment)
            .where(Deployment.id == news.deployment_id, Deployment.first_ready_at.is_(None))
            .values(first_ready_at=func.clock_timestamp())
        )


def remove_hosting(session: Session, worker_id: str, deployment_id: str) -> None:
    """The worker no longer has the deployment at all."""
    session.execute(delete(Hosting).where(Hosting.worker_id == worker_id, Hosting.deployment_id == deployment_id))


def live_hostings(session: Session, deployment_ids: Collection[str] | None = None) -> list[Hosting]:
    """What live workers say, of the given deployments or of all."""
    query = (
        select(Hosting)
        .join(Worker, Worker.id == Hosting.worker_id)
        .where(Worker.heartbeat_at > func.clock_timestamp() - timedelta(seconds=HEARTBEAT_SECONDS))
        .order_by(Hosting.deployment_id, Hosting.worker_id)
    )
    if deployment_ids is not None:
        query = query.where(Hosting.deployment_id.in_(deployment_ids))
    return list(session.scalars(query))
