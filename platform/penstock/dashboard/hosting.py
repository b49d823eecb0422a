"""Where a version is wanted and where it is: each live worker that has it, with its share of that worker's K and V."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from penstock.deployments.placement import Desired, HostingMode
from penstock.errors import NotFound
from penstock.registry.models import LANE_ID, Deployment, Hosting, Worker
from penstock.workers.services import DeploymentStanding, standings_of


@dataclass(frozen=True, slots=True)
class Host:
    """A live worker that has the version. `kv_share` is its share of the K and V of all versions there, where known."""

    worker: Worker
    hosting: Hosting
    kv_share: float | None


@dataclass(frozen=True, slots=True)
class Placed:
    """A version, what is wanted of it, and who has it."""

    standing: DeploymentStanding
    hosts: Sequence[Host]


def placed(session: Session, name: str, version: str) -> Placed:
    """The model's version as it is hosted now. Raises `NotFound`."""
    found = select(Deployment).where(
        Deployment.model_name == name, Deployment.model_version == version, Deployment.id != LANE_ID
    )
    deployment = session.scalars(found.order_by(Deployment.created_at.desc()).limit(1)).one_or_none()
    if deployment is None:
        raise NotFound(f"there is no version {version!r} of a model {name!r}")
    (standing,) = standings_of(session, [deployment])
    totals = _kv_bytes(session, [worker.id for _, worker in standing.hosts])
    return Placed(
        standing, [Host(worker, hosting, _share(hosting, totals.get(worker.id))) for hosting, worker in standing.hosts]
    )


def wanted_in_words(desired: Desired) -> str:
    """Such as `2 of h200 or east, cold, 25 % of K and V`."""
    where = " or ".join(desired.workers) if desired.workers is not None else "all workers"
    count = f"{desired.replicas} of " if desired.replicas is not None else ""
    share = f", {desired.kv_share:.0%} of K and V" if desired.kv_share is not None else ""
    return "no worker" if desired.replicas == 0 else f"{count}{where}, {HostingMode(desired.mode)}{share}"


def _kv_bytes(session: Session, worker_ids: Sequence[str]) -> dict[str, float]:
    size = func.sum(Hosting.stats["kv_bytes"].as_float())
    by_worker = select(Hosting.worker_id, size).where(Hosting.worker_id.in_(worker_ids)).group_by(Hosting.worker_id)
    return {row[0]: row[1] for row in session.execute(by_worker) if row[1]}


def _share(hosting: Hosting, total: float | None) -> float | None:
    own = hosting.stats.get("kv_bytes")
    return own / total if own is not None and total else None
