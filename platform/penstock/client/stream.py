"""Following a job's stream to its end, through every lost connection, without a token twice or none."""

import time
from collections.abc import Iterator
from typing import Final

import httpx

from penstock.client.errors import UnexpectedAnswer
from penstock.client.events import REWOUND, Cursor, Event, StateEvent, TokenEvent, decode
from penstock.client.patience import Patience
from penstock.client.sse import messages
from penstock.client.transport import Transport, is_temporary
from penstock.errors import PenstockError

_SETTLED_SECONDS: Final = 5.0


class Follower:
    """One reader of one stream. It remembers what it gave out, and asks for what comes after that."""

    def __init__(self, transport: Transport, path: str, cursor: Cursor, patience: Patience) -> None:
        self._transport, self._path, self._cursor, self._patience = transport, path, cursor, patience
        self._ended = False

    def events(self) -> Iterator[Event]:
        """Every event after the cursor, to the final one.

        A connection that breaks is made again, until patience ends with nothing new: then
        `ConnectionFailed`. A refusal that is not for now (`NotFound`, `Unauthenticated`, ...) is raised at once.
        """
        while not self._ended:
            try:
                yield from self._one_connection()
            except httpx.RequestError as error:
                self._patience.bear(self._transport.connection_failed(error))
            except PenstockError as error:
                if not is_temporary(error):
                    raise
                self._patience.bear(error)
            else:
                if not self._ended:
                    self._patience.bear(UnexpectedAnswer(f"the stream {self._path} keeps ending before its job does"))

    def _one_connection(self) -> Iterator[Event]:
        headers = {"Last-Event-ID": str(self._cursor)} if self._cursor != Cursor() else {}
        with self._transport.stream(self._path, headers) as response:
            self._ended = response.status_code == httpx.codes.NO_CONTENT
            for message in messages(heard(response.iter_bytes(), self._patience)):
                event = decode(message)
                cursor = Cursor.parse(event.id)
                if cursor <= self._cursor:
                    continue
                self._refuse_gap(event, cursor)
                self._cursor = cursor
                self._patience.note_progress()
                self._ended = isinstance(event, StateEvent) and event.final
                yield event
                if self._ended:
                    return

    def _refuse_gap(self, event: Event, cursor: Cursor) -> None:
        """The ids count, so an event that was left out shows."""
        if isinstance(event, TokenEvent):
            complete = cursor == Cursor(self._cursor.event, self._cursor.position + 1)
        else:
            same_place = cursor.position == self._cursor.position or event.type == REWOUND
            complete = cursor.event == self._cursor.event + 1 and same_place
        if not complete:
            raise UnexpectedAnswer(
                f"the stream {self._path} went from {self._cursor} to {cursor}: something is missing"
            )


def heard(chunks: Iterator[bytes], patience: Patience) -> Iterator[bytes]:
    """The same chunks. A server's comments show that it is well; what every new connection begins with does not."""
    connected_at = time.monotonic()
    for chunk in chunks:
        if time.monotonic() - connected_at > _SETTLED_SECONDS:
            patience.note_progress()
        yield chunk
