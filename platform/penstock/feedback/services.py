"""Keeping feedback: once for each `Idempotency-Key`, with an event for the tenant. Takes a session, never commits."""

from typing import Any, Final

from sqlalchemy import insert, select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from penstock.errors import IdempotencyKeyReused, JobNotFinished, ValidationFailed
from penstock.events.models import FeedEvent
from penstock.feedback.models import Feedback
from penstock.feedback.schemas import FeedbackRequest, feedback_document
from penstock.idempotency.services import HEADER, KeyedRequest
from penstock.ids import new_id
from penstock.jobs import services as jobs
from penstock.jobs.models import Job
from penstock.jobs.states import JobState
from penstock.webhooks.queueing import Owed, tell_endpoints

FEEDBACK_GIVEN: Final = "job.feedback"
"""The event in the feed, and for webhook endpoints that name it. The job's own sequence has ended by then."""


def give(
    session: Session,
    tenant_id: str,
    job_id: str,
    request: FeedbackRequest,
    *,
    api_key_id: str,
    asked: KeyedRequest | None = None,
) -> tuple[Feedback, bool]:
    """Keep a judgement of a finished job; with it, whether an earlier request with the same key has brought it.

    Raises `NotFound`, `JobNotFinished`, `ValidationFailed` for a choice that the job has not, `IdempotencyKeyReused`.
    """
    job = jobs.get(session, tenant_id, job_id)
    _refuse_unfit(job, request)
    made = session.scalars(
        upsert(Feedback)
        .values(
            id=new_id("fbk"),
            tenant_id=tenant_id,
            job_id=job_id,
            **request.model_dump(),
            api_key_id=api_key_id,
            deployment_id=job.deployment_id,
            model_name=job.model_name,
            model_version=job.model_version,
            idempotency_key=asked.key if asked is not None else None,
            fingerprint=asked.fingerprint if asked is not None else None,
        )
        .on_conflict_do_nothing()  # it waits for a twin that is on its way
        .returning(Feedback)
    ).one_or_none()
    if made is None:
        assert asked is not None
        return _kept_before(session, asked), True
    _tell(session, made)
    return made, False


def list_feedback(
    session: Session, tenant_id: str, job_id: str, *, limit: int, after: str | None = None
) -> tuple[list[Feedback], str | None]:
    """A page of the job's feedback, oldest first, and the cursor of the next one. Raises `NotFound`."""
    jobs.get(session, tenant_id, job_id)
    query = select(Feedback).where(Feedback.job_id == job_id, Feedback.id > (after or ""))
    found = list(session.scalars(query.order_by(Feedback.id).limit(limit + 1)))
    return found[:limit], found[limit - 1].id if len(found) > limit else None


def _refuse_unfit(job: Job, request: FeedbackRequest) -> None:
    if not JobState(job.state).final:
        raise JobNotFinished(f"{job.id} is still {job.state}: there is no answer to judge yet", status_now=job.state)
    choices = [choice["index"] for choice in (job.output or {}).get("choices", [])]
    if request.choice is not None and request.choice not in choices:
        right = f"it has {', '.join(map(str, choices))}" if choices else "it has none"
        raise ValidationFailed(f"choice: {job.id} has no choice {request.choice}; {right}", field="choice")


def _kept_before(session: Session, asked: KeyedRequest) -> Feedback:
    kept = session.scalars(
        select(Feedback).where(Feedback.tenant_id == asked.tenant_id, Feedback.idempotency_key == asked.key)
    ).one()
    if kept.fingerprint != asked.fingerprint:
        raise IdempotencyKeyReused(
            f"this {HEADER} came with other feedback before, {kept.id}; new feedback needs a new key", field=HEADER
        )
    return kept


def _tell(session: Session, feedback: Feedback) -> None:
    """The feed names it and holds none of its words, which go with the job when that is deleted."""
    document = feedback_document(feedback)
    named: dict[str, Any] = {name: document[name] for name in ("id", "choice", "score", "label")}
    row = {"tenant_id": feedback.tenant_id, "type": FEEDBACK_GIVEN, "job_id": feedback.job_id, "data": named}
    session.execute(insert(FeedEvent), row)
    tell_endpoints(session, Owed(feedback.tenant_id, FEEDBACK_GIVEN, document))
