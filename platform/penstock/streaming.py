"""Server-Sent Events over HTTP (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

from flask import Response, request

from penstock.auth.services import TenantLimits
from penstock.connection import never, watch
from penstock.errors import QuotaExceeded, ServiceUnavailable
from penstock.services import Services

HEARTBEAT_SECONDS: Final = 15.0
"""How often a comment is sent while nothing happens, so that both ends notice a dead connection."""
STREAM_HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
_RECONNECT_MILLISECONDS: Final = 1000

Item = TypeVar("Item")


def respond(
    services: Services,
    tenant_id: str,
    limits: TenantLimits,
    batches: Iterable[list[Item]],
    as_event: Callable[[Item], str],
) -> Response:
    """Stream the batches, in one of the process's waiting places and one of the tenant's.

    Raises `ServiceUnavailable` when as many requests wait as the process has places for, and `QuotaExceeded` when the
    tenant has as many streams open as it may.
    """
    leave = services.waiting_places.take()
    if leave is None:
        raise ServiceUnavailable(
            f"{services.waiting_places.count} streams are open, which is this server's limit; try again soon"
        )
    try:
        counted, end = services.quotas.admit_stream(tenant_id, limits, batches)
    except QuotaExceeded:
        leave()
        raise
    lines = event_lines(counted, as_event, watch(request.environ))
    response = Response(lines, mimetype="text/event-stream", headers=STREAM_HEADERS)
    response.call_on_close(end)
    response.call_on_close(leave)
    return response


def event_lines(
    batches: Iterable[list[Item]], as_event: Callable[[Item], str], client_gone: Callable[[], bool] = never
) -> Iterator[str]:
    """The text of the stream, a chunk a batch, until the client has gone: a quiet stream would not notice by writing.

    A batch is empty where nothing came for a while; after long there is a comment.
    """
    yield f"retry: {_RECONNECT_MILLISECONDS}\n\n"
    last_sent = time.monotonic()
    for batch in batches:
        if batch:
            yield "".join(map(as_event, batch))
        elif time.monotonic() - last_sent >= HEARTBEAT_SECONDS:
            yield ": still here\n\n"
        elif client_gone():
            return
        else:
            continue
        last_sent = time.monotonic()
