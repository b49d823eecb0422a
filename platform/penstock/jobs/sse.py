"""A job's stream over HTTP."""

from flask import Response, json

from penstock import streaming
from penstock.auth.models import Tenant
from penstock.auth.services import limits_of
from penstock.errors import ValidationFailed
from penstock.jobs import services as jobs
from penstock.jobs.states import JobState
from penstock.jobs.stream import Cursor, JobStream, Sources, StreamItem
from penstock.services import Services


def stream_response(services: Services, *, tenant_id: str, job_id: str, last_event_id: str | None) -> Response:
    """Stream the tenant's job from just after `last_event_id` (from its beginning without one) to its end.

    204, which ends an `EventSource`'s reconnecting, when that was the end. Raises `NotFound`, `ValidationFailed` for
    an id that is none of this job's, `QuotaExceeded` when the tenant has as many streams open as it may, and
    `ServiceUnavailable` when as many requests wait as the process has places for.
    """
    cursor = Cursor.parse(last_event_id) if last_event_id else Cursor()
    if last_event_id:
        services.metrics.stream_resumes.inc()
    with services.database.transaction() as session:
        job = jobs.get(session, tenant_id, job_id)
        limits = limits_of(session.get_one(Tenant, tenant_id))
    if cursor.event > job.last_event:
        raise ValidationFailed(
            f"{job_id} has had {job.last_event} state events so far; event {cursor.event} is not one of them",
            field="Last-Event-ID",
        )
    if JobState(job.state).final and cursor.event == job.last_event:
        return Response(status=204)
    sources = Sources(services.database, services.journal, services.live)
    batches = JobStream(sources, job_id, cursor).follow()
    return streaming.respond(services, tenant_id, limits, batches, _event)


def _event(item: StreamItem) -> str:
    return f"id: {item.cursor}\nevent: {item.type}\ndata: {json.dumps(item.data)}\n\n"
