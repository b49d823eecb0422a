"""A job's stream: its state events and its tokens, in order, from any point on and to the end.

What is stored is the truth (events in PostgreSQL, tokens in the Redis journal and at last in PostgreSQL); live news
only say when to look and spare the look where they can. A reader subscribes first, then catches up, then follows.

A cursor `<event>.<position>` names what has been delivered: the last state event, and how many journal entries.
Entries are held back until the event of the run that wrote them was delivered, so every reader sees one order:

    queued, running, tokens of run 1, requeued, running, tokens of run 2, succeeded
"""

import re
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from redis.exceptions import RedisError
from sqlalchemy import select
from sqlalchemy.orm import Session

from penstock.clock import iso
from penstock.db import DATABASE_AWAY, Database
from penstock.errors import ValidationFailed
from penstock.jobs.events import EventType, events_after
from penstock.jobs.journal import Journal, JournalEntry, unpack_entries
from penstock.jobs.live import LiveBroadcaster, News
from penstock.jobs.models import Event, Job, JobJournal
from penstock.jobs.output import alternatives, call_delta, prompt_document
from penstock.jobs.presentation import job_document
from penstock.jobs.state_watch import POLL_SECONDS
from penstock.logs import get_logger

_OUTAGE_POLL_SECONDS: Final = 0.5
_NO_NEWS: Final = News([], look_again=False)
_CURSOR: Final = re.compile(r"([0-9]{1,9})\.([0-9]{1,9})")
log = get_logger(__name__)
_ENDS_A_RUN: Final = frozenset({EventType.REQUEUED} | {kind for kind in EventType if kind.final})


@dataclass(frozen=True, slots=True)
class Cursor:
    """What a reader has had: state events up to number `event`, journal entries before `position`."""

    event: int = 0
    position: int = 0

    def __str__(self) -> str:
        return f"{self.event}.{self.position}"

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """Raises `ValidationFailed` when the text is none of ours."""
        match = _CURSOR.fullmatch(text)
        if match is None:
            raise ValidationFailed(
                f"{text!r} is no event id of a job's stream: one looks like 3.57 (state event, token position)",
                field="Last-Event-ID",
            )
        return cls(int(match[1]), int(match[2]))


@dataclass(frozen=True, slots=True)
class StreamItem:
    """One event of the stream; `cursor` is where a reader stands who has had it."""

    cursor: Cursor
    type: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sources:
    """Where a stream comes from."""

    database: Database
    journal: Journal
    live: LiveBroadcaster


@dataclass(frozen=True, slots=True)
class _Stored:
    """The state events after a cursor, and the finished job when its last event is among them."""

    events: list[Event]
    finished: Job | None


class JobStream:
    """One reader's way through one job."""

    def __init__(self, sources: Sources, job_id: str, cursor: Cursor) -> None:
        self._sources = sources
        self._job_id = job_id
        self._event, self._position = cursor.event, cursor.position
        self._run = 0  # the last run whose `running` event was delivered; only entries of runs up to it are delivered
        self._seen_fence = 0  # the newest run whose entries were sighted before events were last read
        self._ended = False
        self._look_again_at: float | None = None  # set while PostgreSQL is away

    def follow(self) -> Generator[list[StreamItem], None, None]:
        """Batches of items until the job's last event or the process's end; an empty one when nothing came for long."""
        with self._sources.live.subscribed(self._job_id) as subscription:
            self._run = self._runs_delivered()
            yield self._look(first=True)
            while not self._ended and not self._sources.live.closed:
                news = subscription.take(POLL_SECONDS if self._look_again_at is None else _OUTAGE_POLL_SECONDS)
                yield self._look(news) if self._must_look(news) else self._deliver_fitting(news)

    def _look(self, news: News = _NO_NEWS, *, first: bool = False) -> list[StreamItem]:
        """Everything that is stored and was not delivered yet. While PostgreSQL is away, of the news what can be."""
        try:
            items = self._catch_up(first=first)
        except DATABASE_AWAY as error:
            log.warning("stream.unread", job=self._job_id, error=type(error).__name__)
            self._look_again_at = time.monotonic() + _OUTAGE_POLL_SECONDS
            return self._deliver_fitting(news)
        self._look_again_at = None
        return items

    def _must_look(self, news: News) -> bool:
        """Whether there are events, or entries that do not fit; after a look in vain, when it is time for another."""
        if self._look_again_at is not None:
            return time.monotonic() >= self._look_again_at
        return news.look_again or not self._fits(news)

    def _fits(self, news: News) -> bool:
        """Whether the entries can be delivered as they are: none before them is missing, and their run is known."""
        expected = self._position
        for append in news.appends:
            if append.first_position > expected or any(entry.fence > self._seen_fence for entry in append.entries):
                return False
            expected = max(expected, append.first_position + len(append.entries))
        return True

    def _deliver_fitting(self, news: News) -> list[StreamItem]:
        items: list[StreamItem] = []
        if not self._fits(news):
            return items
        for append in news.appends:
            items += self._release(append.first_position, append.entries)
        return items

    def _catch_up(self, *, first: bool = False) -> list[StreamItem]:
        """Everything that is stored and was not delivered yet."""
        while True:
            stored = self._read_events()
            start = min([self._position, *(event.data["position"] for event in _rewinds(stored.events))])
            entries = self._read_entries(start, stored, first=first)
            newest = max((entry.fence for entry in entries), default=0)
            if newest <= self._seen_fence or stored.finished is not None:
                return self._merge(stored, start, entries)
            # A run's events (whether it rewound the output, too) are stored before its first entry: read them again.
            self._seen_fence = newest

    def _merge(self, stored: _Stored, start: int, entries: Sequence[JournalEntry]) -> list[StreamItem]:
        items: list[StreamItem] = []
        for event in stored.events:
            kind = EventType(event.type)
            if kind in _ENDS_A_RUN:
                items += self._release(start, entries)
            if kind is EventType.REWOUND:
                self._position = min(self._position, event.data["position"])
            if kind is EventType.RUNNING:
                self._run = event.data["run"]
            self._event = event.number
            items.append(self._state_item(event, stored.finished if kind.final else None))
            self._ended = kind.final
        return items + self._release(start, entries)

    def _release(self, start: int, entries: Sequence[JournalEntry]) -> list[StreamItem]:
        """The entries (the first stands at `start`) that come next and whose run was announced."""
        items: list[StreamItem] = []
        for entry in entries[max(self._position - start, 0) :]:
            if entry.fence > self._run:
                break
            items.append(self._delta_item(entry))
        return items

    def _delta_item(self, entry: JournalEntry) -> StreamItem:
        data = delta_document(self._position, entry)
        self._position += 1
        return StreamItem(Cursor(self._event, self._position), "output.delta", data)

    def _state_item(self, event: Event, finished: Job | None) -> StreamItem:
        data = event_document(event)
        if finished is not None:
            data["job"] = job_document(finished)
        return StreamItem(Cursor(self._event, self._position), event.type, data)

    def _read_events(self) -> _Stored:
        with self._sources.database.transaction() as session:
            events = events_after(session, self._job_id, self._event)
            over = bool(events) and EventType(events[-1].type).final
            if not events and session.scalar(select(Job.id).where(Job.id == self._job_id)) is None:
                self._ended = True  # it was deleted, and nothing of it comes any more
            return _Stored(events, session.get(Job, self._job_id) if over else None)

    def _runs_delivered(self) -> int:
        """The last run whose start the reader has heard of."""
        with self._sources.database.transaction() as session:
            runs = session.scalars(
                select(Event.data["run"].as_integer()).where(
                    Event.job_id == self._job_id, Event.number <= self._event, Event.type == EventType.RUNNING
                )
            )
            return max(runs, default=0)

    def _read_entries(self, start: int, stored: _Stored, *, first: bool) -> list[JournalEntry]:
        """The journal from `start` on: PostgreSQL's when the job is over, else Redis's, else the checkpoint."""
        if stored.finished is not None:
            return self._kept_entries(start)
        try:
            entries = self._sources.journal.read(self._job_id, start)
        except RedisError:
            return self._kept_entries(start)
        return entries if entries or not first else self._kept_entries(start)

    def _kept_entries(self, start: int) -> list[JournalEntry]:
        with self._sources.database.transaction() as session:
            return kept_entries(session, self._job_id, start)


def kept_entries(session: Session, job_id: str, start: int = 0) -> list[JournalEntry]:
    """What PostgreSQL has of the job's journal from position `start` on."""
    longer = select(JobJournal.entries).where(JobJournal.job_id == job_id, JobJournal.length > start)
    data = session.scalar(longer)
    return unpack_entries(data)[start:] if data is not None else []


def delta_document(position: int, entry: JournalEntry) -> dict[str, Any]:
    """How a journal entry looks from outside; what was not asked for is left out."""
    optional = {
        "logprob": entry.logprob,
        "top_logprobs": alternatives(entry.top_logprobs) if entry.top_logprobs is not None else None,
        "finish_reason": entry.finish_reason,
        "tool_calls": [call_delta(piece) for piece in entry.calls] or None,
        "prompt_logprobs": prompt_document(entry.prompt) if entry.prompt is not None else None,
    }
    return {
        "position": position,
        "choice": entry.choice,
        "index": entry.index,
        "token_id": entry.token_id,
        "text": entry.text,
    } | {name: value for name, value in optional.items() if value is not None}


def event_document(event: Event) -> dict[str, Any]:
    """How a state event looks from outside."""
    return {"number": event.number, "type": event.type, "data": event.data, "created_at": iso(event.created_at)}


def _rewinds(events: Sequence[Event]) -> Iterator[Event]:
    return (event for event in events if event.type == EventType.REWOUND)
