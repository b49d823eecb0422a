"""How dead letters look from outside, and what their routes read."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from penstock.clock import iso
from penstock.dead_letters.burial import DEADLY
from penstock.dead_letters.models import DeadLetter
from penstock.dead_letters.services import Group, LetterState
from penstock.jobs.details import run_documents
from penstock.jobs.documents import RunDocument
from penstock.jobs.models import Job, JobRun
from penstock.jobs.states import JobClass

_Reason = Literal["engine_crashed", "forward_failed", "out_of_memory", "logits_not_finite", "internal_error"]


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid")


class DeadLetterDocument(_Document):
    """A job that was given up because running it breaks something."""

    id: str
    object: Literal["dead_letter"]
    status: LetterState
    reason: _Reason = Field(description="The code of the job's error")
    meaning: str = Field(description="What the reason says of the job")
    message: str = Field(description="What the worker or the engine said last")
    tenant_id: str
    job_id: str
    model_name: str
    model_version: str
    replay_job_id: str | None = Field(description="The job that runs its request again")
    created_at: datetime = Field(description="When it was given up")
    settled_at: datetime | None
    settled_by: str | None = Field(description="The id of the key that replayed or discarded it")


class GivenUpJob(_Document):
    """What an operator may know of the job: all but what its tenant wrote and was answered."""

    job_class: str = Field(alias="class")
    params: dict[str, Any]
    prompt_tokens: int | None
    output_tokens: int
    own_crashes: int = Field(description="Crashes of the engine while it ran alone")
    retry_of: str | None
    batch_id: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class DeadLetterDetail(DeadLetterDocument):
    """A letter with the job's story."""

    job: GivenUpJob
    runs: list[RunDocument] = Field(description="Which worker had it, when, how that ended and why")


class DeadLetterPage(_Document):
    """A page of letters, newest first."""

    object: Literal["list"]
    data: list[DeadLetterDocument]
    has_more: bool
    next: str | None = Field(description="Give it as `after` to get the next page")


class DeadLetterGroup(_Document):
    """Open letters of one reason and model version."""

    reason: _Reason
    meaning: str
    model_name: str
    model_version: str
    count: int
    tenants: int = Field(description="Of how many tenants they are")
    first_at: datetime
    latest_at: datetime
    latest_id: str


class DeadLetterGroups(_Document):
    """All groups, the one with the latest letter first."""

    object: Literal["list"]
    data: list[DeadLetterGroup]


class LetterSelection(BaseModel):
    """Which letters."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reason: _Reason | None = None
    model: str | None = Field(default=None, min_length=1, max_length=200)
    version: str | None = Field(default=None, min_length=1, max_length=64)


class LetterQuery(LetterSelection):
    """Which letters, and which page of them."""

    status: LetterState = "open"
    tenant: str | None = Field(default=None, min_length=1, max_length=64)
    after: str | None = Field(default=None, pattern=r"^dlt_[0-9a-z]{26}$", description="`next` of the page before")
    limit: int = Field(default=20, ge=1, le=100)


class LetterBulkRequest(BaseModel):
    """What to do with all open letters of a group."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    action: Literal["replay", "discard"]
    filter: LetterSelection = Field(description="All open letters where it is empty")


def letter_document(letter: DeadLetter) -> dict[str, Any]:
    """As `DeadLetterDocument`."""
    return {
        "id": letter.id,
        "object": "dead_letter",
        "status": letter.state,
        "reason": letter.reason,
        "meaning": DEADLY[letter.reason],
        "message": letter.message,
        "tenant_id": letter.tenant_id,
        "job_id": letter.job_id,
        "model_name": letter.model_name,
        "model_version": letter.model_version,
        "replay_job_id": letter.replay_job_id,
        "created_at": iso(letter.created_at),
        "settled_at": iso(letter.settled_at),
        "settled_by": letter.settled_by,
    }


def letter_detail(letter: DeadLetter, job: Job, runs: Sequence[JobRun]) -> dict[str, Any]:
    """As `DeadLetterDetail`."""
    told = {
        "class": JobClass(job.job_class).name.lower(),
        "params": {name: value for name, value in job.params.items() if name not in _WRITTEN_BY_TENANT},
        "prompt_tokens": job.prompt_tokens,
        "output_tokens": job.output_tokens,
        "own_crashes": job.own_crashes,
        "retry_of": job.retry_of,
        "batch_id": job.batch_id,
        "created_at": iso(job.created_at),
        "started_at": iso(job.started_at),
        "finished_at": iso(job.finished_at),
    }
    return letter_document(letter) | {"job": told, "runs": run_documents(runs)}


_WRITTEN_BY_TENANT = frozenset({"stop", "response_format", "tools", "tool_choice"})


def group_document(group: Group) -> dict[str, Any]:
    """As `DeadLetterGroup`."""
    return {
        "reason": group.reason,
        "meaning": DEADLY[group.reason],
        "model_name": group.model_name,
        "model_version": group.model_version,
        "count": group.count,
        "tenants": group.tenants,
        "first_at": iso(group.first_at),
        "latest_at": iso(group.latest_at),
        "latest_id": group.latest_id,
    }
