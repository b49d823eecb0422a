"""Following a job's stream to its end, through every lost connection, without a token twice or none."""

from collections.abc import Mapping

from penstock.client.errors import UnexpectedAnswer
from penstock.client.events import REWOUND, Cursor, Event, StateEvent, TokenEvent, decode
from penstock.client.reading import Reader
from penstock.client.sse import Message


class JobReader(Reader[Event]):
    """Reads the events after `cursor`, to the final one."""

    def __init__(self, path: str, cursor: Cursor) -> None:
        self.path, self._cursor = path, cursor

    def headers(self) -> Mapping[str, str]:
        return {"Last-Event-ID": str(self._cursor)} if self._cursor != Cursor() else {}

    def take(self, message: Message) -> Event | None:
        event = decode(message)
        cursor = Cursor.parse(event.id)
        if cursor <= self._cursor:
            return None
        self._refuse_gap(event, cursor)
        self._cursor = cursor
        self.ended = isinstance(event, StateEvent) and event.final
        return event

    def cut_short(self) -> str:
        return f"the stream {self.path} keeps ending before its job does"

    def _refuse_gap(self, event: Event, cursor: Cursor) -> None:
        """The ids count, so an event that was left out shows."""
        if isinstance(event, TokenEvent):
            complete = cursor == Cursor(self._cursor.event, self._cursor.position + 1)
        else:
            same_place = cursor.position == self._cursor.position or event.type == REWOUND
            complete = cursor.event == self._cursor.event + 1 and same_place
        if not complete:
            raise UnexpectedAnswer(f"the stream {self.path} went from {self._cursor} to {cursor}: something is missing")
