"""How workers and deployments look from outside."""

from dataclasses import asdict
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from penstock.clock import iso
from penstock.deployments.placement import HostingMode
from penstock.registry.hosting_services import HostingState
from penstock.registry.models import Deployment, Hosting
from penstock.workers.services import DeploymentStanding, WorkerStanding


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _HostingDocument(_Document):
    status: HostingState
    progress: float = Field(description="Of loading, 0 to 1")
    free_slots: int
    kv_usage: float | None = Field(description="The share of the KV pool's pages in use, 0 to 1; null until it is told")
    kv_pages: int | None = Field(description="Pages in the KV pool")
    kv_bytes: int | None = Field(description="What the KV pool takes of the device")
    weight_bytes: int | None = Field(description="What the weights take of the device")
    resident_bytes: int | None = Field(description="What the engine's process had of the machine's memory once ready")
    load_seconds: float | None = Field(
        description="From the first byte hashed to ready, other versions' leaving included"
    )
    switch_seconds: float | None = Field(
        description="Where another version had to leave for it: from its being asked to until this one was ready"
    )
    error: str | None = Field(description="Why it cannot be loaded, or how its engine ended last")
    ready_at: datetime | None = Field(description="Since when it is ready")
    updated_at: datetime


class HostedDocument(_HostingDocument):
    """A model version on a worker."""

    deployment_id: str
    model_name: str
    model_version: str


class WorkerDocument(_Document):
    """A worker process. Seconds count by the database's clock."""

    id: str
    object: Literal["worker"]
    status: Literal["live", "draining", "silent"] = Field(
        description="`draining` takes no more jobs and ends; `silent` has missed its heartbeats"
    )
    hostname: str
    pid: int
    device: str
    labels: list[str] = Field(description="By which deployments may ask for it, beside its host's name")
    models: list[str] | None = Field(description="Names of the models that it is set up for; null is all")
    slots: int
    running_jobs: int
    hosts: list[HostedDocument]
    started_at: datetime
    heartbeat_at: datetime
    silent_seconds: float = Field(description="Since its last heartbeat")
    last_claim_at: datetime | None
    idle_seconds: float | None = Field(description="Since it last took a job; null before the first")
    drain_requested_at: datetime | None


class WorkerList(_Document):
    """All workers, oldest first."""

    object: Literal["list"]
    data: list[WorkerDocument]


class PlaceDocument(_HostingDocument):
    """A live worker that has a version."""

    worker_id: str
    hostname: str


class PlacementDocument(_Document):
    """Where and how a version is to be hosted."""

    workers: list[str] | None = Field(description="Names of hosts, and labels of workers; null is all")
    replicas: int | None = Field(description="On how many of those; null is all")
    kv_share: float | None = Field(description="Of a device's memory for K and V; null follows the traffic")
    mode: HostingMode
    idle_seconds: float


class DeploymentDocument(_Document):
    """A model version that workers host."""

    id: str
    object: Literal["deployment"]
    model_name: str
    model_version: str
    status: Literal["active", "draining", "retired"]
    routes: list[Literal["champion", "challenger", "incoming"]] = Field(description="What it is to its model now")
    waiting_jobs: int
    running_jobs: int
    ready_workers: int
    placement: PlacementDocument
    nowhere: str | None = Field(description="Why no live worker should have it; its jobs wait until one should")
    hosts: list[PlaceDocument]
    context_length: int
    recipe: dict[str, Any]
    created_at: datetime
    first_ready_at: datetime | None


class DeploymentList(_Document):
    """All deployments that are not retired, newest first."""

    object: Literal["list"]
    data: list[DeploymentDocument]


def worker_document(standing: WorkerStanding) -> dict[str, Any]:
    """As `WorkerDocument`."""
    worker = standing.worker
    drains = worker.draining or worker.drain_requested_at is not None
    return {
        "id": worker.id,
        "object": "worker",
        "status": "silent" if not standing.live else "draining" if drains else "live",
        "hostname": worker.hostname,
        "pid": worker.pid,
        "device": worker.device,
        "labels": worker.labels,
        "models": worker.models,
        "slots": worker.slots,
        "running_jobs": standing.running,
        "hosts": [_hosted(hosting, deployment) for hosting, deployment in standing.hosts],
        "started_at": iso(worker.started_at),
        "heartbeat_at": iso(worker.heartbeat_at),
        "silent_seconds": round(max(standing.silent_seconds, 0.0), 3),
        "last_claim_at": iso(worker.last_claim_at),
        "idle_seconds": None if standing.idle_seconds is None else round(max(standing.idle_seconds, 0.0), 3),
        "drain_requested_at": iso(worker.drain_requested_at),
    }


def deployment_document(standing: DeploymentStanding) -> dict[str, Any]:
    """As `DeploymentDocument`."""
    deployment = standing.deployment
    return {
        "id": deployment.id,
        "object": "deployment",
        "model_name": deployment.model_name,
        "model_version": deployment.model_version,
        "status": deployment.state,
        "routes": list(standing.routes),
        "waiting_jobs": standing.waiting,
        "running_jobs": standing.running,
        "ready_workers": standing.ready_workers,
        "placement": asdict(standing.desired),
        "nowhere": standing.nowhere,
        "hosts": [
            _hosting(hosting) | {"worker_id": worker.id, "hostname": worker.hostname}
            for hosting, worker in standing.hosts
        ],
        "context_length": deployment.context_length,
        "recipe": deployment.recipe,
        "created_at": iso(deployment.created_at),
        "first_ready_at": iso(deployment.first_ready_at),
    }


def _hosted(hosting: Hosting, deployment: Deployment) -> dict[str, Any]:
    return _hosting(hosting) | {
        "deployment_id": deployment.id,
        "model_name": deployment.model_name,
        "model_version": deployment.model_version,
    }


def _hosting(hosting: Hosting) -> dict[str, Any]:
    pages, in_use = hosting.stats.get("pages_total"), hosting.stats.get("pages_in_use")
    sizes = ("kv_bytes", "weight_bytes", "resident_bytes", "load_seconds", "switch_seconds")
    return {
        "status": hosting.state,
        "progress": hosting.progress,
        "free_slots": hosting.free_slots,
        "kv_usage": round(in_use / pages, 4) if pages and in_use is not None else None,
        "kv_pages": pages,
        **{name: hosting.stats.get(name) for name in sizes},
        "error": hosting.error,
        "ready_at": iso(hosting.ready_at),
        "updated_at": iso(hosting.updated_at),
    }
