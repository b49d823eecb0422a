"""Reading who works and what is deployed, and asking a worker to drain. Takes a session, never commits."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from penstock.auth.audit import Action, Actor, record
from penstock.deployments.placement import EVERYWHERE, Desired, WorkerPlace, why_nowhere
from penstock.deployments.services import desired_of, hosted_deployment, live_workers
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
    return _standings(session, session.scalars(select(Worker).order_by(Worker.id)).all())


def get_worker(session: Session, worker_id: str) -> WorkerStanding:
    """The worker. Raises `NotFound`."""
    return _standings(session, [_worker(session, worker_id)])[0]


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
    return _standings(session, [worker])[0]


def list_deployments(session: Session) -> list[DeploymentStanding]:
    """Every deployment that is not retired, newest first."""
    found = select(Deployment).where(Deployment.state != "retired")
    return standings_of(session, session.scalars(found.order_by(Deployment.created_at.desc(), Deployment.id)).all())


def get_deployment(session: Session, deployment_id: str) -> DeploymentStanding:
    """The deployment, retired or not. Raises `NotFound`."""
    return standings_of(session, [hosted_deployment(session, deployment_id)])[0]


def standings_of(session: Session, deployments: Sequence[Deployment]) -> list[DeploymentStanding]:
    """How these deployments stand, in their order; as many statements for many as for one."""
    ids = [deployment.id for deployment in deployments]
    waiting, running = (_jobs_by_deployment(session, ids, state) for state in (JobState.QUEUED, JobState.RUNNING))
    hosts = _live_hosts(session, ids)
    named = {deployment.model_name for deployment in deployments}
    routing = session.scalars(select(RoutingPolicy).where(RoutingPolicy.model_name.in_(named)))
    policies = {policy.model_name: policy for policy in routing}
    desired, living = desired_of(session, ids), live_workers(session)
    return [
        DeploymentStanding(
            each,
            waiting=waiting.get(each.id, 0),
            running=running.get(each.id, 0),
            ready_workers=sum(hosting.state == HostingState.READY for hosting, _ in hosts[each.id]),
            routes=_routes(policies.get(each.model_name), each.id),
            desired=desired.get(each.id, EVERYWHERE),
            hosts=hosts[each.id],
            nowhere=_nowhere(each, desired.get(each.id, EVERYWHERE), living),
        )
        for each in deployments
    ]


def _worker(session: Session, worker_id: str, *, lock: bool = False) -> Worker:
    worker = session.get(Worker, worker_id, with_for_update=lock or None)
    if worker is None:
        raise NotFound(f"no worker {worker_id!r}: it may have ended", field="id")
    return worker


def _standings(session: Session, workers: Sequence[Worker]) -> list[WorkerStanding]:
    now = session.scalars(select(func.clock_timestamp())).one()
    ids = [worker.id for worker in workers]
    hosts: defaultdict[str, list[tuple[Hosting, Deployment]]] = defaultdict(list)
    for hosting, deployment in session.execute(
        select(Hosting, Deployment)
        .join(Deployment, Deployment.id == Hosting.deployment_id)
        .where(Hosting.worker_id.in_(ids))
        .order_by(Deployment.model_name, Deployment.created_at, Deployment.id)
    ):
        hosts[hosting.worker_id].append((hosting, deployment))
    held = select(Job.lease_holder, func.count()).where(Job.lease_holder.in_(ids), Job.state == JobState.RUNNING)
    running = {row[0]: row[1] for row in session.execute(held.group_by(Job.lease_holder))}
    return [_standing(worker, hosts[worker.id], running.get(worker.id, 0), now) for worker in workers]


def _standing(
    worker: Worker, hosts: Sequence[tuple[Hosting, Deployment]], running: int, now: datetime
) -> WorkerStanding:
    silent = now - worker.heartbeat_at
    return WorkerStanding(
        worker,
        hosts,
        running,
        silent < timedelta(seconds=HEARTBEAT_SECONDS),
        silent.total_seconds(),
        (now - worker.last_claim_at).total_seconds() if worker.last_claim_at is not None else None,
    )


def _jobs_by_deployment(session: Session, deployment_ids: Sequence[str], state: JobState) -> dict[str, int]:
    of_them = select(Job.deployment_id, func.count()).where(Job.deployment_id.in_(deployment_ids), Job.state == state)
    return {row[0]: row[1] for row in session.execute(of_them.group_by(Job.deployment_id))}


def _live_hosts(session: Session, deployment_ids: Sequence[str]) -> Mapping[str, list[tuple[Hosting, Worker]]]:
    hosts: defaultdict[str, list[tuple[Hosting, Worker]]] = defaultdict(list)
    for hosting, worker in session.execute(
        select(Hosting, Worker)
        .join(Worker, Worker.id == Hosting.worker_id)
        .where(
            Hosting.deployment_id.in_(deployment_ids),
            Worker.heartbeat_at > func.clock_timestamp() - timedelta(seconds=HEARTBEAT_SECONDS),
        )
        .order_by(Worker.hostname, Worker.id)
    ):
        hosts[hosting.deployment_id].append((hosting, worker))
    return hosts


def _routes(policy: RoutingPolicy | None, deployment_id: str) -> list[str]:
    names = ("champion", "challenger", "incoming")
    return [name for name in names if policy is not None and getattr(policy, f"{name}_id") == deployment_id]


def _nowhere(deployment: Deployment, desired: Desired, living: Sequence[WorkerPlace]) -> str | None:
    return None if deployment.state == "retired" else why_nowhere(deployment.model_name, desired, living)
