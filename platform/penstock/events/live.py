"""The feed as it grows, in a web process: one thread asks PostgreSQL once for all readers, and hands out what is new.

The thread lives while somebody reads. Each reader has a bounded queue; who falls behind is told to read on from the
table, and so misses nothing.
"""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from penstock.db import Database
from penstock.events.services import FeedItem, head_of, items_since, place_committed
from penstock.logs import get_logger

POLL_SECONDS: Final = 0.25
_OUTAGE_SECONDS: Final = 1.0
_BATCH: Final = 500
_BACKLOG: Final = 2000  # events that wait for one slow reader; beyond, it reads on from the table
log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class News:
    """What came since the last look. With `behind`, some that came are not here: read on from the table."""

    items: list[FeedItem]
    behind: bool


class Subscription:
    """One reader's bounded queue. The feed's thread fills it, the reader's thread empties it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._items: deque[FeedItem] = deque()
        self._behind = False
        self._woken = False

    def take(self, timeout: float) -> News:
        """What has come, after waiting at most `timeout` seconds for the first of it."""
        with self._changed:
            if not (self._items or self._behind or self._woken):
                self._changed.wait(timeout)
            news = News(list(self._items), self._behind)
            self._items.clear()
            self._behind = False
        return news

    def offer(self, items: list[FeedItem]) -> None:
        """Queue items; when too many wait, drop them all and have the reader read on from the table."""
        with self._changed:
            if len(self._items) + len(items) > _BACKLOG:
                self._items.clear()
                self._behind = True
            else:
                self._items.extend(items)
            self._changed.notify()

    def wake(self) -> None:
        """End every wait, now and later: the process is stopping."""
        with self._changed:
            self._woken = True
            self._changed.notify()


@dataclass(slots=True)
class _Tenant:
    """A tenant with readers. `position` is the last that was handed to them."""

    position: int
    readers: set[Subscription] = field(default_factory=set)


class FeedBroadcaster:
    """The process's one reader of the feed."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._tenants: dict[str, _Tenant] = {}
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    @property
    def closed(self) -> bool:
        """Whether the process is stopping, and streams are to end."""
        return self._stopping.is_set()

    @contextmanager
    def subscribed(self, tenant_id: str) -> Iterator[Subscription]:
        """The tenant's events while the block runs: those after the feed's head at its beginning, or some earlier ones.

        Subscribe first, read the table then: so nothing falls between.
        """
        with self._database.transaction() as session:
            head = head_of(session, tenant_id)
        subscription = Subscription()
        with self._lock:
            self._tenants.setdefault(tenant_id, _Tenant(head)).readers.add(subscription)
            self._start()
        try:
            yield subscription
        finally:
            with self._lock:
                tenant = self._tenants[tenant_id]
                tenant.readers.discard(subscription)
                if not tenant.readers:
                    del self._tenants[tenant_id]

    def close(self) -> None:
        """Wake every reader for the last time; the thread ends."""
        self._stopping.set()
        with self._lock:
            for tenant in self._tenants.values():
                for subscription in tenant.readers:
                    subscription.wake()

    def join(self) -> None:
        """Wait until the thread, if there is one, has ended: closed, or without readers."""
        thread = self._thread
        if thread is not None:
            thread.join()

    def _start(self) -> None:
        if self._thread is None and not self._stopping.is_set():
            self._thread = threading.Thread(target=self._run, name="feed-broadcaster", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while not self._done():
            try:
                full = self._poll()
            except SQLAlchemyError as error:
                log.warning("feed.unread", error=type(error).__name__)
                self._stopping.wait(_OUTAGE_SECONDS)
            else:
                self._stopping.wait(0 if full else POLL_SECONDS)

    def _done(self) -> bool:
        """Whether nobody reads; then the next reader starts another thread."""
        with self._lock:
            if self._tenants and not self._stopping.is_set():
                return False
            self._thread = None
            return True

    def _poll(self) -> bool:
        """Hand out what is new; returns whether there may be more already."""
        with self._lock:
            positions = {tenant_id: tenant.position for tenant_id, tenant in self._tenants.items()}
        with self._database.transaction() as session:
            place_committed(session)
        with self._database.transaction() as session:
            items = items_since(session, positions, _BATCH)
        with self._lock:
            for tenant_id, new in _by_tenant(items).items():
                if (tenant := self._tenants.get(tenant_id)) is not None:
                    tenant.position = new[-1].position
                    for subscription in tenant.readers:
                        subscription.offer(new)
        return len(items) >= _BATCH


def _by_tenant(items: list[FeedItem]) -> dict[str, list[FeedItem]]:
    found: dict[str, list[FeedItem]] = {}
    for item in items:
        found.setdefault(item.tenant_id, []).append(item)
    return found
