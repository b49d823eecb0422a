"""Jobs that quantize and evaluate: submitted here, and tried again. Takes a session, never commits."""

from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session

from penstock.compressions import versions
from penstock.compressions.lane import open_lane
from penstock.compressions.models import Compression
from penstock.compressions.schemas import EvaluateRequest, FromFile, FromJobs, LaneRequest, QuantizeRequest, asked_by
from penstock.compressions.texts import texts_of_jobs
from penstock.compressions.versions import UNCOMPRESSED, FiledVersion
from penstock.errors import QuotaExceeded, ValidationFailed
from penstock.fairness.counters import wake
from penstock.files import services as files
from penstock.ids import new_id
from penstock.jobs.events import EventType, Happening, record
from penstock.jobs.locks import lock_queue
from penstock.jobs.models import Job
from penstock.jobs.states import JobClass, JobState
from penstock.settings import MlflowSettings

Request = QuantizeRequest | EvaluateRequest
_QUEUE_RETRY_SECONDS = 5


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, and the versions that it means. `against` is an evaluation's other one."""

    request: Request
    model: FiledVersion
    against: FiledVersion | None = None


@dataclass(frozen=True, slots=True)
class Submission:
    """Who submits a job, and on what terms."""

    tenant_id: str
    max_queued_jobs: int
    traceparent: str | None = None
    api_key_id: str | None = None
    retry_of: str | None = None


def locate(session: Session, request: Request) -> dict[str, FiledVersion | None]:
    """The versions that the request names, by its field; None where only MLflow may know one."""
    named = {"model": request.model}
    if isinstance(request, EvaluateRequest):
        named["against"] = request.against
    return {field: versions.find(session, model) for field, model in named.items()}


def complete(settings: MlflowSettings, request: Request, located: dict[str, FiledVersion | None]) -> Asked:
    """The same with what MLflow knows, asked outside of any transaction. Raises as `versions.ask` does."""
    found = {
        field: version or versions.ask(settings, str(getattr(request, field)), field=field)
        for field, version in located.items()
    }
    return Asked(request, found["model"], found.get("against"))


def submit(session: Session, asked: Asked, submission: Submission) -> Job:
    """Queue the job in the lane: check what it asks for, write its row, what it works on, and its first event."""
    request = asked.request
    _refuse_past_deadline(session, request)
    _refuse_over_quota(session, submission)
    _refuse_unfit(session, asked, submission.tenant_id)
    job = session.scalars(
        insert(Job)
        .values(
            **_row(asked, submission),
            id=new_id("job"),
            deployment_id=open_lane(session),
            last_event=1,
        )
        .returning(Job)
    ).one()
    against = asked.against.as_row() if asked.against is not None else None
    session.add(Compression(job_id=job.id, model=asked.model.as_row(), against=against))
    record(session, [Happening(job, EventType.QUEUED, {"model_version": job.model_version})])
    wake(session, job.deployment_id, submission.tenant_id, besides=[job.id])
    return job


def retry(session: Session, job: Job, submission: Submission) -> Job:
    """A new job with the finished one's request, on the very versions that it worked on."""
    kept = session.get_one(Compression, job.id)
    request = asked_by(
        job.kind,
        job.input,
        job.model,
        priority=job.priority,
        webhook=job.webhook,
        tags=job.tags,
        metadata=job.user_metadata,
    )
    against = FiledVersion.from_row(kept.against) if kept.against is not None else None
    asked = Asked(request, FiledVersion.from_row(kept.model), against)
    return submit(session, asked, replace(submission, retry_of=job.id))


def needs_operator(request: Request) -> str | None:
    """The field for which the scope `operator` is needed, if any is."""
    if isinstance(request, QuantizeRequest):
        if request.alias is not None:
            return "alias"
        sources = {"calibration": request.texts, "evaluate.data": request.evaluation and request.evaluation.data}
    else:
        sources = {"data": request.data}
    return next((field for field, texts in sources.items() if isinstance(texts, FromJobs) and texts.all_tenants), None)


def _row(asked: Asked, submission: Submission) -> dict[str, Any]:
    request, model = asked.request, asked.model
    return {
        "tenant_id": submission.tenant_id,
        "kind": request.kind,
        "model": request.model,
        "input": request.stored(),
        "params": {},
        "seed": request.recipe.seed if isinstance(request, QuantizeRequest) else 0,
        "tags": request.tags,
        "user_metadata": request.metadata,
        "webhook": request.webhook.model_dump() if request.webhook else None,
        "retry_of": submission.retry_of,
        "job_class": JobClass.BATCH.value,
        "priority": request.priority,
        "deadline": request.deadline,
        "api_key_id": submission.api_key_id,
        "model_name": model.name,
        "model_version": model.version,
        "routing": {"rule": "files", "source": model.source},
        "prompt_tokens": 0,
        "traceparent": submission.traceparent,
    }


def _refuse_unfit(session: Session, asked: Asked, tenant_id: str) -> None:
    request = asked.request
    if isinstance(request, QuantizeRequest):
        if asked.model.scheme != UNCOMPRESSED:
            raise ValidationFailed(
                f"{asked.model.spelled} is compressed already ({asked.model.scheme}); name the version that it is of",
                field="model",
            )
        if request.texts is not None:
            _refuse_no_text(session, request.texts, asked.model.name, tenant_id, "calibration")
        if request.evaluation is not None:
            data = request.evaluation.data or request.texts or FromJobs.model_validate({"from": "jobs"})
            _refuse_no_text(session, data, asked.model.name, tenant_id, "evaluate")
    else:
        _refuse_no_text(session, request.data, asked.model.name, tenant_id, "data")


def _refuse_no_text(session: Session, texts: FromJobs | FromFile, model_name: str, tenant_id: str, field: str) -> None:
    if isinstance(texts, FromFile):
        files.get(session, tenant_id, texts.file_id, field=f"{field}.file_id")
    elif not texts_of_jobs(session, model_name, None if texts.all_tenants else tenant_id, 1):
        raise ValidationFailed(
            f"no job of {model_name!r} has succeeded whose text could be used; give a file, as "
            '{"from": "file", "file_id": ...}',
            field=field,
        )


def _refuse_over_quota(session: Session, submission: Submission) -> None:
    lock_queue(session, submission.tenant_id)  # such jobs are few: they are counted one at a time
    most = submission.max_queued_jobs
    waiting = select(Job.id).where(Job.tenant_id == submission.tenant_id, Job.state == JobState.QUEUED)
    if session.scalar(waiting.offset(most - 1).limit(1)) is not None:
        raise QuotaExceeded(
            f"the limit of {most} waiting jobs is reached", limit=most, retry_after=_QUEUE_RETRY_SECONDS
        )


def _refuse_past_deadline(session: Session, request: LaneRequest) -> None:
    if request.deadline is not None and request.deadline <= session.scalars(select(func.now())).one():
        raise ValidationFailed("must lie in the future", field="deadline")
