"""Live news of jobs in a web process: one thread reads Redis and hands each message to the streams that want it.

Publications may be lost; nothing depends on one. Whoever falls behind, or was cut off from Redis, is told to look
again at what is stored, and so misses nothing. A second thread looks at the stored states of all jobs that are read,
in one statement, and wakes the readers of those that moved: a thousand quiet streams cost PostgreSQL one look.
"""

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import msgspec
from redis import Redis
from redis.client import PubSub
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from penstock.broker import LIVE_CHANNEL_PREFIX
from penstock.db import Database
from penstock.jobs.journal import LiveAppend, LiveMessage, unpack_live
from penstock.jobs.state_watch import POLL_SECONDS, StateWatch
from penstock.logs import get_logger

_BACKLOG: Final = 512  # appends that wait for one slow reader; beyond, it looks again at what is stored
_LISTEN_SECONDS: Final = 0.2  # and so how long closing takes at most
_BACKOFF_SECONDS: Final = (0.05, 0.1, 0.2, 0.5, 1.0)
log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class News:
    """What came since the last look.

    With `look_again`, read events and journal afresh; `appends` may lack some then.
    """

    appends: list[LiveAppend]
    look_again: bool


class Subscription:
    """One reader's bounded queue. The broadcaster's thread fills it, the reader's thread empties it."""

    def __init__(self, *, tokens: bool) -> None:
        self._tokens = tokens
        self._changed = threading.Condition()
        self._appends: deque[LiveAppend] = deque()
        self._look_again = False

    def take(self, timeout: float) -> News:
        """What has come, after waiting at most `timeout` seconds for the first of it."""
        with self._changed:
            if not self._appends and not self._look_again:
                self._changed.wait(timeout)
            news = News(list(self._appends), self._look_again)
            self._appends.clear()
            self._look_again = False
        return news

    def offer(self, append: LiveAppend) -> None:
        """Queue an append; when too many wait, drop them all and have the reader look again."""
        if not self._tokens:
            return
        with self._changed:
            if len(self._appends) >= _BACKLOG:
                self._appends.clear()
                self._look_again = True
            else:
                self._appends.append(append)
            self._changed.notify()

    def wake(self) -> None:
        """Have the reader look again."""
        with self._changed:
            self._look_again = True
            self._changed.notify()


class LiveBroadcaster:
    """The process's one reader of the live channels and of states. Its threads start with the first subscription."""

    def __init__(self, redis: Redis, database: Database) -> None:
        self._redis = redis
        self._states = StateWatch(database)
        self._lock = threading.Lock()
        self._subscriptions: dict[str, set[Subscription]] = {}
        self._threads: list[threading.Thread] = []
        self._stopping = threading.Event()
        self._connected = threading.Event()

    @property
    def closed(self) -> bool:
        """Whether the process is stopping, and streams are to end."""
        return self._stopping.is_set()

    @property
    def connected(self) -> bool:
        """Whether publications reach us now."""
        return self._connected.is_set()

    @contextmanager
    def subscribed(self, job_id: str, *, tokens: bool = True) -> Iterator[Subscription]:
        """News of one job (of its state alone without `tokens`) while the block runs.

        Subscribe first, read what is stored then: so nothing falls between.
        """
        subscription = Subscription(tokens=tokens)
        with self._lock:
            self._subscriptions.setdefault(job_id, set()).add(subscription)
            self._start()
        try:
            yield subscription
        finally:
            with self._lock:
                readers = self._subscriptions[job_id]
                readers.discard(subscription)
                if not readers:
                    del self._subscriptions[job_id]

    def close(self) -> None:
        """Wake every reader for the last time and end the threads."""
        self._stopping.set()
        self._wake_all()

    def join(self) -> None:
        """Wait until the threads have ended."""
        for thread in self._threads:
            thread.join()

    def _start(self) -> None:
        if self._threads or self._stopping.is_set():
            return
        runs = {"live-broadcaster": self._follow_redis, "state-watch": self._watch_states}
        self._threads = [threading.Thread(target=run, name=name, daemon=True) for name, run in runs.items()]
        for thread in self._threads:
            thread.start()

    def _watch_states(self) -> None:
        while not self._stopping.wait(POLL_SECONDS):
            with self._lock:
                job_ids = list(self._subscriptions)
            if not self.connected:
                self._wake(job_ids)  # their tokens, too, are now told by nobody
                continue
            try:
                self._wake(self._states.look(job_ids))
            except SQLAlchemyError as error:
                log.warning("live.unwatched", error=type(error).__name__)

    def _follow_redis(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                with self._redis.pubsub() as channels:  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
                    channels.psubscribe(f"{LIVE_CHANNEL_PREFIX}*")
                    self._listen(channels)
            except (RedisError, OSError) as error:
                failures = 0 if self.connected else failures + 1
                self._connected.clear()
                log.warning("live.disconnected", error=type(error).__name__, failures=failures)
                self._stopping.wait(_BACKOFF_SECONDS[min(failures, len(_BACKOFF_SECONDS) - 1)])

    def _listen(self, channels: PubSub) -> None:
        while not self._stopping.is_set():
            message = channels.get_message(timeout=_LISTEN_SECONDS)
            if message is None:
                continue
            if message["type"] == "psubscribe":
                # Also after a reconnection that the client made by itself: what was published meanwhile is lost.
                self._connected.set()
                self._wake_all()
            elif message["type"] == "pmessage":
                with _unreadable_skipped():
                    self._hand_out(unpack_live(message["data"]))

    def _hand_out(self, message: LiveMessage) -> None:
        with self._lock:
            for append in message.appends:
                for subscription in self._subscriptions.get(append.job_id, ()):
                    subscription.offer(append)
        self._wake(message.events)

    def _wake_all(self) -> None:
        with self._lock:
            job_ids = list(self._subscriptions)
        self._wake(job_ids)

    def _wake(self, job_ids: Iterable[str]) -> None:
        with self._lock:
            for job_id in job_ids:
                for subscription in self._subscriptions.get(job_id, ()):
                    subscription.wake()


@contextmanager
def _unreadable_skipped() -> Iterator[None]:
    """A message of a newer or older version must not end the thread that everybody listens through."""
    try:
        yield
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        log.warning("live.unreadable", error=str(error))
