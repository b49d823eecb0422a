"""A job's stream as Server-Sent Events over HTTP (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from flask import Response, json, request

from penstock.auth.models import Tenant
from penstock.auth.services import limits_of
from penstock.connection import never, watch
from penstock.errors import QuotaExceeded, ServiceUnavailable, ValidationFailed
from penstock.jobs import services as jobs
from penstock.jobs.states import JobState
from penstock.jobs.stream import Cursor, JobStream, Sources, StreamItem
from penstock.services import Services

HEARTBEAT_SECONDS: Final = 15.0
"""How often a comment is sent while nothing happens, so that both ends notice a dead connection."""

_RECONNECT_MILLISECONDS: Final = 1000
_HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


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
    leave = services.waiting_places.take()
    if leave is None:
        raise ServiceUnavailable(
            f"{services.waiting_places.count} streams are open, which is this server's limit; try again soon"
        )
    sources = Sources(services.database, services.journal, services.live)
    batches = JobStream(sources, job_id, cursor).follow()
    try:
        counted, end = services.quotas.admit_stream(tenant_id, limits, batches)
    except QuotaExceeded:
        leave()
        raise
    lines = event_lines(counted, watch(request.environ))
    response = Response(lines, mimetype="text/event-stream", headers=_HEADERS)
    response.call_on_close(end)
    response.call_on_close(leave)
    return response


def event_lines(batches: Iterable[list[StreamItem]], client_gone: Callable[[], bool] = never) -> Iterator[str]:
    """The text of the stream, a chunk a batch, until the client has gone: a quiet job would not notice by writing."""
    yield f"retry: {_RECONNECT_MILLISECONDS}\n\n"
    last_sent = time.monotonic()
    for batch in batches:
        if batch:
            yield "".join(map(_event, batch))
        elif time.monotonic() - last_sent >= HEARTBEAT_SECONDS:
            yield ": still here\n\n"
        elif client_gone():
            return
        else:
            continue
        last_sent = time.monotonic()


def _event(item: StreamItem) -> str:
    return f"id: {item.cursor}\nevent: {item.type}\ndata: {json.dumps(item.data)}\n\n"
