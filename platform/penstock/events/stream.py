"""The feed as Server-Sent Events: what is stored after the cursor, then what comes, each event once and in order."""

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Final

from flask import Response, json, request

from penstock.auth.services import Principal
from penstock.connection import never, watch
from penstock.db import Database
from penstock.endpoints import caller_remains
from penstock.errors import QuotaExceeded, ServiceUnavailable
from penstock.events.live import FeedBroadcaster, News
from penstock.events.services import FeedItem, items_since
from penstock.jobs.sse import HEARTBEAT_SECONDS
from penstock.services import Services

_PAGE: Final = 500
_LOOK_SECONDS: Final = 2.0  # how often a quiet stream looks whether its reader is still there
_RECONNECT_MILLISECONDS: Final = 1000
_HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def always() -> bool:
    """Somebody who may read for ever."""
    return True


class FeedStream:
    """One reader's way through its tenant's feed."""

    def __init__(
        self,
        database: Database,
        feed: FeedBroadcaster,
        tenant_id: str,
        position: int,
        remains: Callable[[], bool] = always,
    ) -> None:
        self._database = database
        self._remains = remains
        self._feed = feed
        self._tenant_id = tenant_id
        self._position = position

    def follow(self) -> Generator[list[FeedItem], None, None]:
        """Batches of items until the process ends or its reader may read no more; empty when nothing came for long."""
        with self._feed.subscribed(self._tenant_id) as subscription:
            yield from self._catch_up()
            while not self._feed.closed and self._remains():
                yield from self._deliver(subscription.take(_LOOK_SECONDS))

    def _deliver(self, news: News) -> Iterator[list[FeedItem]]:
        if news.behind:
            yield from self._catch_up()
        yield self._pass([item for item in news.items if item.position > self._position])

    def _catch_up(self) -> Iterator[list[FeedItem]]:
        full = True
        while full and not self._feed.closed:
            with self._database.transaction() as session:
                stored = items_since(session, {self._tenant_id: self._position}, _PAGE)
            full = len(stored) == _PAGE
            yield self._pass(stored)

    def _pass(self, items: list[FeedItem]) -> list[FeedItem]:
        if items:
            self._position = items[-1].position
        return items


def stream_response(services: Services, principal: Principal, position: int) -> Response:
    """Stream the tenant's feed from just after `position`, for as long as the request's key is good.

    Raises `QuotaExceeded` when the tenant has as many streams open as it may, and `ServiceUnavailable` when as many
    requests wait as the process has places for.
    """
    leave = services.waiting_places.take()
    if leave is None:
        raise ServiceUnavailable(
            f"{services.waiting_places.count} streams are open, which is this server's limit; try again soon"
        )
    stream = FeedStream(services.database, services.feed, principal.tenant_id, position, caller_remains())
    batches = stream.follow()
    try:
        counted, end = services.quotas.admit_stream(principal.tenant_id, principal.limits, batches)
    except QuotaExceeded:
        leave()
        raise
    lines = event_lines(counted, watch(request.environ))
    response = Response(lines, mimetype="text/event-stream", headers=_HEADERS)
    response.call_on_close(end)
    response.call_on_close(leave)
    return response


def event_lines(batches: Iterable[list[FeedItem]], client_gone: Callable[[], bool] = never) -> Iterator[str]:
    """The text of the stream, a chunk a batch, and a comment when there was nothing for long; until the client goes."""
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


def _event(item: FeedItem) -> str:
    return f"id: {item.position}\nevent: {item.type}\ndata: {json.dumps(item.document)}\n\n"
