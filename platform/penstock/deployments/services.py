"""What operators want of deployments, and what each worker should have by that. Takes a session, never commits."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Any

from sqlalchemy import Select, func, select, union
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from penstock.auth.audit import Action, Actor, record
from penstock.deployments.models import Placement
from penstock.deployments.placement import (
    EVERYWHERE,
    Desired,
    HostingMode,
    WorkerPlace,
    places_for,
    why_nowhere,
)
from penstock.errors import NotFound
from penstock.fairness.claimable import claimable
from penstock.jobs.models import Job
from penstock.registry.hosting_services import HEARTBEAT_SECONDS, wanted_deployments
from penstock.registry.models import LANE_ID, Deployment, Hosting, RoutingPolicy, Worker
from penstock.rollouts.models import UNDER_WAY, Rollout


@dataclass(frozen=True, slots=True)
class Wanted:
    """A deployment that a worker should have.

    `desired` is what operators want, but warm while it is to take over, in a rollout, or a promotion's way back.
    `needed` says that it is to be loaded now: it is warm, jobs wait for it, or it has yet to show that it loads.
    `traffic` is its share of its model's jobs, 0 to 1.
    """

    deployment: Deployment
    desired: Desired
    needed: bool
    traffic: float


def desired_of(session: Session, deployment_ids: Collection[str]) -> dict[str, Desired]:
    """What operators want of these deployments; those that nobody said anything of are left out."""
    rows = session.scalars(select(Placement).where(Placement.deployment_id.in_(deployment_ids)))
    return {row.deployment_id: _desired(row) for row in rows}


def place(session: Session, deployment_id: str, desired: Desired, actor: Actor, *, tenant_id: str) -> Deployment:
    """Say where and how the deployment is to be hosted; what `desired` leaves open is open from now on.

    Workers follow at their next look. `tenant_id` is the actor's. Raises `NotFound`.
    """
    deployment = hosted_deployment(session, deployment_id)
    values = asdict(desired) | {"mode": desired.mode.value, "updated_at": func.clock_timestamp()}
    row = upsert(Placement).values(deployment_id=deployment_id, **values)
    session.execute(row.on_conflict_do_update(index_elements=[Placement.deployment_id], set_=values))
    version = {"model": deployment.model_name, "version": deployment.model_version}
    details = version | asdict(desired) | {"mode": desired.mode.value}
    record(session, actor, Action.DEPLOYMENT_PLACED, tenant_id=tenant_id, target=deployment_id, details=details)
    session.flush()
    return deployment


def hosted_deployment(session: Session, deployment_id: str) -> Deployment:
    """The deployment, retired or not. Raises `NotFound`."""
    deployment = session.get(Deployment, deployment_id) if deployment_id != LANE_ID else None
    if deployment is None:
        raise NotFound(f"no deployment {deployment_id!r}", field="id")
    return deployment


def wanted_on(session: Session, worker_id: str, names: Collection[str] | None) -> list[Wanted] | None:
    """What the worker should have now, of the models `names` or of all, oldest first.

    None, which is no answer, when the worker's row is gone or it drains: it keeps what it has.
    """
    workers = live_workers(session)
    own = next((worker for worker in workers if worker.id == worker_id), None)
    if own is None or own.draining:
        return None
    deployments = wanted_deployments(session, names)
    desired = desired_of(session, [each.id for each in deployments])
    here = [each for each in deployments if _is_place(own, each, desired.get(each.id, EVERYWHERE), workers)]
    wishes = _kept_warm(session, {each.id: desired.get(each.id, EVERYWHERE) for each in here})
    needed, traffic = _needed(session, here, wishes), traffic_shares(session, {each.model_name for each in here})
    return [Wanted(each, wishes[each.id], each.id in needed, traffic.get(each.id, 1.0)) for each in here]


def nowhere(session: Session, deployment: Deployment) -> str | None:
    """Why no live worker should have the deployment, in words; None where one should."""
    desired = desired_of(session, [deployment.id]).get(deployment.id, EVERYWHERE)
    return why_nowhere(deployment.model_name, desired, live_workers(session))


def live_workers(session: Session) -> list[WorkerPlace]:
    """Every live worker as a place to be, by id."""
    living = Worker.heartbeat_at > func.clock_timestamp() - timedelta(seconds=HEARTBEAT_SECONDS)
    workers = session.scalars(select(Worker).where(living).order_by(Worker.id)).all()
    hosts: dict[str, dict[str, str]] = {}
    rows = select(Hosting.worker_id, Hosting.deployment_id, Hosting.state)
    for worker_id, deployment_id, state in session.execute(rows):
        hosts.setdefault(worker_id, {})[deployment_id] = state
    return [_place_of(worker, hosts.get(worker.id, {})) for worker in workers]


def traffic_shares(session: Session, model_names: Collection[str]) -> dict[str, float]:
    """By deployment, its share of its model's jobs, where a rollout divides them; others have all of theirs."""
    under_way = select(Rollout).where(Rollout.model_name.in_(model_names), Rollout.state.in_(UNDER_WAY))
    shares: dict[str, float] = {}
    for rollout in session.scalars(under_way):
        shares |= {rollout.candidate_id: rollout.share, rollout.champion_id: 1 - rollout.share}
    return shares


def _is_place(own: WorkerPlace, deployment: Deployment, desired: Desired, workers: Sequence[WorkerPlace]) -> bool:
    return own in places_for(deployment.id, deployment.model_name, desired, workers)


def _kept_warm(session: Session, desired: Mapping[str, Desired]) -> dict[str, Desired]:
    """What is wanted of each, where no cold one is that is to take over, in a rollout, or a promotion's way back."""
    cold = _cold(desired)
    held: tuple[Select[Any], ...] = (
        select(RoutingPolicy.incoming_id).where(RoutingPolicy.incoming_id.in_(cold)),
        select(Rollout.candidate_id).where(Rollout.candidate_id.in_(cold), Rollout.state.in_(UNDER_WAY)),
        select(Rollout.champion_id).where(Rollout.champion_id.in_(cold), Rollout.state.in_(UNDER_WAY)),
        select(Deployment.id).where(Deployment.id.in_(cold), Deployment.keep_warm_until > func.clock_timestamp()),
    )
    warm: set[str] = set(session.scalars(union(*held))) if cold else set()
    return {name: replace(each, mode=HostingMode.WARM) if name in warm else each for name, each in desired.items()}


def _needed(session: Session, deployments: Sequence[Deployment], desired: Mapping[str, Desired]) -> set[str]:
    """Which of them are to be loaded now."""
    cold = _cold(desired)
    waited_for = select(Deployment.id).where(
        Deployment.id.in_(cold), select(Job.id).where(Job.deployment_id == Deployment.id, claimable()).exists()
    )
    woken = set(session.scalars(waited_for)) if cold else set()
    return {each.id for each in deployments if each.id not in cold or each.id in woken or each.first_ready_at is None}


def _cold(desired: Mapping[str, Desired]) -> set[str]:
    return {name for name, each in desired.items() if each.mode is HostingMode.COLD}


def _desired(row: Placement) -> Desired:
    workers = None if row.workers is None else tuple(row.workers)
    return Desired(workers, row.replicas, row.kv_share, HostingMode(row.mode), row.idle_seconds)


def _place_of(worker: Worker, hosts: dict[str, Any]) -> WorkerPlace:
    drains = worker.draining or worker.drain_requested_at is not None
    return WorkerPlace(worker.id, worker.hostname, worker.labels, worker.models, drains, hosts)
