"""`client.operation`: workers, deployments and dead letters, for operators' keys."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Final, Literal
from urllib.parse import quote
from uuid import uuid4

from penstock.client.bulk import BulkOperation
from penstock.client.documents import Document, parse
from penstock.client.job_documents import Run
from penstock.client.jobs import given
from penstock.client.reading import Asking, Pages
from penstock.client.transport import IDEMPOTENCY_HEADER

_WORKERS: Final = "/v1/admin/workers"
_DEPLOYMENTS: Final = "/v1/admin/deployments"
_LETTERS: Final = "/v1/admin/dead-letters"


class Worker(Document):
    """A worker at one moment: `live`, `draining` or `silent`. `hosts` are the versions that it has, and their state."""

    id: str
    status: str
    hostname: str
    pid: int
    device: str
    slots: int
    running_jobs: int
    hosts: list[dict[str, Any]]
    silent_seconds: float
    idle_seconds: float | None
    drain_requested_at: datetime | None


class Placement(Document):
    """Where and how a version is to be hosted; None leaves it to the workers."""

    workers: list[str] | None
    replicas: int | None
    kv_share: float | None
    mode: str
    idle_seconds: float


class Deployment(Document):
    """A model version that workers host: `hosts` are the live workers that have it, and how it stands there.

    `nowhere` says why no live worker should have it.
    """

    id: str
    model_name: str
    model_version: str
    status: str
    routes: list[str]
    waiting_jobs: int
    running_jobs: int
    ready_workers: int
    placement: Placement
    nowhere: str | None
    hosts: list[dict[str, Any]]


class DeadLetter(Document):
    """A job that was given up; `job` and `runs` come with `dead_letter`."""

    id: str
    status: str
    reason: str
    meaning: str
    message: str
    tenant_id: str
    job_id: str
    model_name: str
    model_version: str
    replay_job_id: str | None
    created_at: datetime
    job: dict[str, Any] | None = None
    runs: Sequence[Run] = ()


class DeadLetterGroup(Document):
    """Open dead letters of one reason and model version."""

    reason: str
    meaning: str
    model_name: str
    model_version: str
    count: int
    tenants: int
    first_at: datetime
    latest_at: datetime
    latest_id: str


class _Workers(Document):
    data: list[Worker]


class _Deployments(Document):
    data: list[Deployment]


class _Groups(Document):
    data: list[DeadLetterGroup]


class DeadLetterPage(Document):
    """One page of a listing."""

    data: list[DeadLetter]
    has_more: bool
    next: str | None


class Operation:
    """What runs the installation. Every call takes the scope `operator`."""

    def __init__(self, transport: Asking) -> None:
        self._transport = transport

    def workers(self) -> Sequence[Worker]:
        """All workers, oldest first."""
        return parse(_Workers, self._transport.request("GET", _WORKERS)).data

    def drain_worker(self, worker_id: str) -> Worker:
        """Have a worker take no more jobs, finish or hand back those that it has, and end. Raises `NotFound`."""
        path = f"{_WORKERS}/{quote(worker_id, safe='')}/drain"
        return parse(Worker, self._transport.request("POST", path))

    def deployments(self) -> Sequence[Deployment]:
        """All model versions that workers host, newest first."""
        return parse(_Deployments, self._transport.request("GET", _DEPLOYMENTS)).data

    def deployment(self, deployment_id: str) -> Deployment:
        """One of them, or one that is retired. Raises `NotFound`."""
        return parse(Deployment, self._transport.request("GET", _of(deployment_id)))

    def place_deployment(
        self,
        deployment_id: str,
        *,
        workers: Sequence[str] | None = None,
        replicas: int | None = None,
        kv_share: float | None = None,
        mode: Literal["warm", "cold"] | None = None,
        idle_seconds: float | None = None,
    ) -> Deployment:
        """Say where and how it is to be hosted; what is left out has its default. Raises `NotFound`."""
        named = None if workers is None else list(workers)
        body = given(workers=named, replicas=replicas, kv_share=kv_share, mode=mode, idle_seconds=idle_seconds)
        return parse(Deployment, self._transport.request("PUT", _of(deployment_id), body=body))

    def dead_letter_groups(self) -> Sequence[DeadLetterGroup]:
        """Open dead letters by reason and model version, the latest group first."""
        return parse(_Groups, self._transport.request("GET", f"{_LETTERS}/groups")).data

    def dead_letters(
        self,
        *,
        status: Literal["open", "replayed", "discarded"] | None = None,
        reason: str | None = None,
        model: str | None = None,
        version: str | None = None,
        tenant: str | None = None,
        page_size: int | None = None,
    ) -> Iterator[DeadLetter]:
        """All dead letters that match, the open ones by itself, newest first."""
        query = {"status": status, "reason": reason, "model": model, "version": version, "tenant": tenant}
        return self._transport.pages(Pages(DeadLetterPage, _LETTERS, query | {"limit": page_size}))

    def dead_letter(self, letter_id: str) -> DeadLetter:
        """A dead letter with its job's story. Raises `NotFound`."""
        return parse(DeadLetter, self._transport.request("GET", _path(letter_id)))

    def replay_dead_letter(self, letter_id: str) -> DeadLetter:
        """Submit its job's request again, once. Raises `DeadLetterSettled`, and what a submit raises."""
        return parse(DeadLetter, self._transport.request("POST", f"{_path(letter_id)}/replay"))

    def discard_dead_letter(self, letter_id: str) -> DeadLetter:
        """Put it away. Raises `DeadLetterSettled`."""
        return parse(DeadLetter, self._transport.request("POST", f"{_path(letter_id)}/discard"))

    def settle_dead_letters(
        self,
        action: Literal["replay", "discard"],
        *,
        reason: str | None = None,
        model: str | None = None,
        version: str | None = None,
        idempotency_key: str | None = None,
    ) -> BulkOperation:
        """Begin to replay, or discard, all open dead letters that match."""
        body = {"action": action, "filter": given(reason=reason, model=model, version=version)}
        headers = {IDEMPOTENCY_HEADER: idempotency_key or str(uuid4())}
        return parse(BulkOperation, self._transport.request("POST", f"{_LETTERS}/bulk", body=body, headers=headers))


def _of(deployment_id: str) -> str:
    return f"{_DEPLOYMENTS}/{quote(deployment_id, safe='')}"


def _path(letter_id: str) -> str:
    return f"{_LETTERS}/{quote(letter_id, safe='')}"
