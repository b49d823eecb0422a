"""`client.events` and `client.follow_events`: all that happened in the tenant, each event once and in order."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from pydantic import ValidationError

from penstock.client.documents import Document, parse
from penstock.client.errors import UnexpectedAnswer
from penstock.client.reading import Pages, Reader
from penstock.client.sse import Message

_PATH: Final = "/v1/events"
_BEGINNING: Final = "0"
NOW: Final = "now"


class FeedEvent(Document):
    """Something that happened in the tenant; `event_number` counts within the job `job_id`."""

    id: str
    type: str
    job_id: str | None
    event_number: int | None
    data: dict[str, Any]
    created_at: datetime


class FeedPage(Document):
    """One page of the feed."""

    data: list[FeedEvent]
    has_more: bool
    next: str


def feed(after: str | None, page_size: int | None) -> Pages[FeedEvent]:
    """What stands after that event, to the feed's present end."""
    return Pages(FeedPage, _PATH, {"after": after, "limit": page_size})


class FeedReader(Reader[FeedEvent]):
    """Reads the events after that one, without an end."""

    path = _PATH

    def __init__(self, after: str | None) -> None:
        self._after = after

    def question(self) -> Mapping[str, Any] | None:
        """Asked for once, so that a connection which is made again begins where the first one did."""
        return {"after": NOW, "limit": 1} if self._after == NOW else None

    def learn(self, answer: Mapping[str, Any], /) -> None:
        self._after = parse(FeedPage, answer).next

    def headers(self) -> Mapping[str, str]:
        return {"Last-Event-ID": self._after or _BEGINNING}

    def take(self, message: Message) -> FeedEvent | None:
        try:
            event = FeedEvent.model_validate_json(message.data)
        except ValidationError as error:
            raise UnexpectedAnswer("the stream holds an event that is not understood") from error
        self._after = event.id
        return event

    def cut_short(self) -> str:
        return "the stream of events keeps ending"
