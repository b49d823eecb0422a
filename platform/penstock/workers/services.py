"""Reading who works and what is deployed, and asking a worker to drain. Takes a session, never commits."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from penstock.auth.audit import Action, Actor, record
from penstock.deployments.placement import EVERYWHERE, Desired
from penstock.deployments.services import desired_of, hosted_deployment, nowhere
from penstock.errors import NotFound
from penstock.jobs.models import Job
from penstock.jobs.states import JobState
from penstock.registry.hosting_services import HEARTBEAT_SECONDS, HostingState
from penstock.registry.models import Deployment, Hosting, RoutingPolicy, Worker


@dataclass(frozen=True, slots=True)
class WorkerStanding:
    """A worker, what it hosts, and how many jobs it holds. Seconds count by the database's clock."""

    worker: Worker
    hosts: Sequence[tuple[Hosting, Deployment]]
    running: int
    live: bool
    silent_seconds: float
    idle_seconds: float | None


@dataclass(frozen=True, slots=True)
class DeploymentStanding:
    """A deployment with how many jobs wait for it and run, on how many live workers it is ready, and its routes.

    `desired` is where and how it should be hosted, `hosts` where it is; `nowhere` says why no live worker should have
    it.
    """

    deployment: Deployment
    waiting: int
    running: int
    ready_workers: int
    routes: Sequence[str]
    desired: Desired
    hosts: Sequence[tuple[Hosting, Worker]]
    nowhere: str | None


def list_workers(session: Session) -> list[WorkerStanding]:
    """Every worker that is known, oldest first."""
    return [_standing(session, worker) for worker in session.scalars(select(Worker).order_by(Worker.id))]


def get_worker(session: Session, worker_id: str) -> WorkerStanding:
    """The worker. Raises `NotFound`."""
    return _standing(session, _worker(session, worker_id))


def request_drain(session: Session, worker_id: str, actor: Actor, *, tenant_id: str) -> WorkerStanding:
    """Ask the worker to take no more jobs, finish or hand back those that it has, and end. `tenant_id` is the actor's.

    It sees that at its next heartbeat. Asking again changes nothing. Raises `NotFound`.
    """
    worker = _worker(session, worker_id, lock=True)
    if worker.drain_requested_at is None:
        worker.drain_requested_at = session.scalars(select(func.clock_timestamp())).one()
        details = {"hostname": worker.hostname, "pid": worker.pid}
        record(session, actor, Action.WORKER_DRAINED, tenant_id=tenant_id, target=worker_id, details=details)
        session.flush()
    return _standing(session, worker)


def list_deployments(session: Session) -> list[DeploymentStanding]:
    """Every deployment that is not retired, newest first."""
    found = session.scalars(
        select(Deployment).where(Deployment.state != "retired").order_by(Deployment.created_at.desc(), Deployment.id)
    )
    return [_deployed(session, deployment) for deployment in found]


def get_deployment(session: Session, deployment_id: str) -> DeploymentStanding:
    """The deployment, retired or not. Raises `NotFound`."""
    return _deployed(session, hosted_deployment(session, deployment_id))


def _worker(session: Session, worker_id: str, *, lock: bool = False) -> Worker:
    worker = session.get(Worker, worker_id, with_for_update=lock or None)
    if worker is None:
        raise NotFound(f"no worker {worker_id!r}: it may have ended", field="id")
    return worker


def _standing(session: Session, worker: Worker) -> WorkerStanding:
    now = session.scalars(select(func.clock_timestamp())).one()
    hosts = session.execute(
        select(Hosting, Deployment)
        .join(Deployment, Deployment.id == Hosting.deployment_id)
        .where(Hosting.worker_id == worker.id)
        .order_by(Deployment.model_name, Deployment.created_at)
    )
    held = select(func.count()).where(Job.lease_holder == worker.id, Job.state == JobState.RUNNING)
    silent = now - worker.heartbeat_at
    return WorkerStanding(
        worker,
        [(hosting, deployment) for hosting, deployment in hosts],
        session.scalar(held) or 0,
        silent < timedelta(seconds=HEARTBEAT_SECONDS),
        silent.total_seconds(),
        (now - worker.last_claim_at).total_seconds() if worker.last_claim_at is not None else None,
    )


def _deployed(session: Session, deployment: Deployment) -> DeploymentStanding:
    def jobs(state: JobState) -> int:
        return session.scalar(select(func.count()).where(Job.deployment_id == deployment.id, Job.state == state)) or 0

    hosts = session.execute(
        select(Hosting, Worker)
        .join(Worker, Worker.id == Hosting.worker_id)
        .where(
            Hosting.deployment_id == deployment.id,
            Worker.heartbeat_at > func.clock_timestamp() - timedelta(seconds=HEARTBEAT_SECONDS),
        )
        .order_by(Worker.hostname, Worker.id)
    ).all()
    policy = session.get(RoutingPolicy, deployment.model_name)
    routes = [
        name
        for name in ("champion", "challenger", "incoming")
        if policy and getattr(policy, f"{name}_id") == deployment.id
    ]
    desired = desired_of(session, [deployment.id]).get(deployment.id, EVERYWHERE)
    return DeploymentStanding(
        deployment,
        waiting=jobs(JobState.QUEUED),
        running=jobs(JobState.RUNNING),
        ready_workers=sum(hosting.state == HostingState.READY for hosting, _ in hosts),
        routes=routes,
        desired=desired,
        hosts=[(hosting, worker) for hosting, worker in hosts],
        nowhere=nowhere(session, deployment, desired) if deployment.state != "retired" else None,
    )
