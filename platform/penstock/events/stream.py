"""The feed as Server-Sent Events: what is stored after the cursor, then what comes, each event once and in order."""

from collections.abc import Callable, Generator, Iterator
from typing import Final

from flask import Response, json

from penstock import streaming
from penstock.auth.services import Principal
from penstock.db import Database
from penstock.endpoints import caller_remains
from penstock.events.live import FeedBroadcaster, News
from penstock.events.services import FeedItem, items_since
from penstock.services import Services

_PAGE: Final = 500
_LOOK_SECONDS: Final = 2.0  # how often a quiet stream looks whether its reader is still there


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
    stream = FeedStream(services.database, services.feed, principal.tenant_id, position, caller_remains())
    return streaming.respond(services, principal.tenant_id, principal.limits, stream.follow(), _event)


def _event(item: FeedItem) -> str:
    return f"id: {item.position}\nevent: {item.type}\ndata: {json.dumps(item.document)}\n\n"
