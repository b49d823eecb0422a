"""Where a deployment should be, and what of a device's memory: pure decisions.

Every worker decides for itself, by the same rows, with the same answer; nobody leads. Two that look at different
moments may disagree for one look: then there is one too many, or too few, until the next.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from penstock.registry.hosting_services import HostingState


class HostingMode(StrEnum):
    """Whether a version is loaded all the time, or while jobs wait for it."""

    WARM = "warm"
    COLD = "cold"


@dataclass(frozen=True, slots=True)
class Desired:
    """What is wanted of a deployment; `penstock.deployments.models.Placement` says what its members mean."""

    workers: tuple[str, ...] | None = None
    replicas: int | None = None
    kv_share: float | None = None
    mode: HostingMode = HostingMode.WARM
    idle_seconds: float = 300.0


EVERYWHERE: Final = Desired()
"""Of a deployment that nobody said anything of."""


@dataclass(frozen=True, slots=True)
class WorkerPlace:
    """A live worker as a place to be. `models` None is all; `hosts` says how deployments stand there."""

    id: str
    hostname: str
    labels: Collection[str] = ()
    models: Collection[str] | None = None
    draining: bool = False
    hosts: Mapping[str, str] | None = None

    def answers_to(self, names: Collection[str] | None) -> bool:
        """Whether it is one of those that are meant."""
        return names is None or self.hostname in names or not set(names).isdisjoint(self.labels)

    def state_of(self, deployment_id: str) -> str | None:
        """How the deployment stands here; None where it is not."""
        return (self.hosts or {}).get(deployment_id)


_SETTLED: Final = {HostingState.READY: 0, HostingState.COLD: 1, HostingState.LOADING: 1}
_NOT_HERE: Final = 2


def places_for(
    deployment_id: str, model_name: str, desired: Desired, workers: Sequence[WorkerPlace]
) -> list[WorkerPlace]:
    """The workers that should host it.

    Of too many that could, those that have it stay, and the rest are drawn by a hash of both (Thaler and Ravishankar,
    "A name-based mapping scheme for rendezvous", 1996). Where it failed to load it is tried again and again, and that
    does not count: another takes its place meanwhile.
    """
    able = [worker for worker in workers if _able(worker, model_name, desired)]
    if desired.replicas is None:
        return able
    failed = [worker for worker in able if worker.state_of(deployment_id) == HostingState.FAILED]
    others = [worker for worker in able if worker not in failed]
    others.sort(key=lambda worker: _preference(deployment_id, worker))
    return [*(failed if desired.replicas else ()), *others[: desired.replicas]]


def why_nowhere(model_name: str, desired: Desired, workers: Sequence[WorkerPlace]) -> str | None:
    """Why no live worker should host it, in words; None where one should."""
    if desired.replicas == 0:
        return "it is wanted on no worker (replicas is 0)"
    if not workers:
        return "no worker is live"
    if any(_able(worker, model_name, desired) for worker in workers):
        return None
    if not any(worker.models is None or model_name in worker.models for worker in workers):
        return f"no live worker is set up for {model_name} (PENSTOCK_WORKER_MODELS)"
    if desired.workers is not None and not any(worker.answers_to(desired.workers) for worker in workers):
        return f"no live worker has the name or label {' or '.join(desired.workers)}, where it is wanted"
    return "every worker that it is wanted on is about to stop"


def kv_shares(explicit: Mapping[str, float | None], traffic: Mapping[str, float]) -> dict[str, float]:
    """Each deployment's share of a device's memory for K and V, which add up to 1.

    Those with an `explicit` share have it, cut down in proportion where they ask for more than all; what they leave is
    split among the others by their `traffic`, or equally where none has any.
    """
    fixed = {name: share for name, share in explicit.items() if share is not None}
    rest = [name for name in explicit if name not in fixed]
    claimed = sum(fixed.values())
    scale = 1 / claimed if claimed > 1 or (claimed and not rest) else 1.0
    weights = {name: traffic.get(name, 1.0) for name in rest}
    if rest and not sum(weights.values()):
        weights = dict.fromkeys(rest, 1.0)
    left = max(0.0, 1 - claimed * scale)
    shared = {name: left * weight / sum(weights.values()) for name, weight in weights.items()}
    return {name: share * scale for name, share in fixed.items()} | shared


def _able(worker: WorkerPlace, model_name: str, desired: Desired) -> bool:
    hosts_model = worker.models is None or model_name in worker.models
    return hosts_model and not worker.draining and worker.answers_to(desired.workers)


def _preference(deployment_id: str, worker: WorkerPlace) -> tuple[int, str]:
    state = worker.state_of(deployment_id)
    settled = _NOT_HERE if state is None else _SETTLED.get(HostingState(state), _NOT_HERE)
    return settled, hashlib.sha256(f"{deployment_id} {worker.id}".encode()).hexdigest()
