"""`client.events` and `client.follow_events`: all that happened in the tenant, each event once and in order."""

from collections.abc import Iterator
from typing import Any, Final

import httpx
from pydantic import ValidationError

from penstock.client.errors import UnexpectedAnswer
from penstock.client.models import FeedEvent, FeedPage, parse
from penstock.client.patience import Patience
from penstock.client.sse import messages
from penstock.client.stream import heard
from penstock.client.transport import Transport, is_temporary
from penstock.errors import PenstockError

_PATH: Final = "/v1/events"
_BEGINNING: Final = "0"
NOW: Final = "now"


def feed(transport: Transport, after: str | None, page_size: int | None) -> Iterator[FeedEvent]:
    """What stands after that event, to the feed's present end."""
    query: dict[str, Any] = {"after": after, "limit": page_size}
    more = True
    while more:
        page = parse(FeedPage, transport.request("GET", _PATH, query=query))
        yield from page.data
        more, query["after"] = page.has_more, page.next


class FeedFollower:
    """One reader of the feed's stream, over as many connections as it takes."""

    def __init__(self, transport: Transport, after: str | None, patience: Patience) -> None:
        self._transport = transport
        self._after = after
        self._patience = patience

    def events(self) -> Iterator[FeedEvent]:
        """Every event after the cursor, without an end.

        A connection that breaks is made again, until patience ends with nothing new: then `ConnectionFailed`.
        """
        while True:
            try:
                if self._after == NOW:
                    self._after = self._present_end()
                yield from self._one_connection()
            except httpx.RequestError as error:
                self._patience.bear(self._transport.connection_failed(error))
            except PenstockError as error:
                if not is_temporary(error):
                    raise
                self._patience.bear(error)
            else:
                self._patience.bear(UnexpectedAnswer("the stream of events keeps ending"))

    def _present_end(self) -> str:
        """Asked for once, so that a connection which is made again begins where the first one did."""
        return parse(FeedPage, self._transport.request("GET", _PATH, query={"after": NOW, "limit": 1})).next

    def _one_connection(self) -> Iterator[FeedEvent]:
        with self._transport.stream(_PATH, {"Last-Event-ID": self._after or _BEGINNING}) as response:
            for message in messages(heard(response.iter_bytes(), self._patience)):
                try:
                    event = FeedEvent.model_validate_json(message.data)
                except ValidationError as error:
                    raise UnexpectedAnswer("the stream holds an event that is not understood") from error
                self._after = event.id
                self._patience.note_progress()
                yield event
