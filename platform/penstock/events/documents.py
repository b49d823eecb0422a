"""How the feed looks from outside."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class FeedEventDocument(BaseModel):
    """One event of the tenant."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(description="Its place in the feed; rises from event to event")
    object: Literal["event"]
    type: str
    job_id: str | None = Field(description="The job that it happened to; null for other events")
    event_number: int | None = Field(description="Its number in the job's own sequence, as in streams and webhooks")
    data: dict[str, Any]
    created_at: datetime


class FeedPage(BaseModel):
    """A page of the feed, oldest first."""

    model_config = ConfigDict(extra="forbid")

    object: Literal["list"]
    data: list[FeedEventDocument]
    has_more: bool
    next: str = Field(description="Give it as `after`, now or later, to read on without gap or repeat")


class FeedQuery(BaseModel):
    """Where to begin, and how much at once."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    after: str | None = Field(
        default=None,
        description="The `next` of the page before, or an event's `id`; the feed's beginning without it; "
        "`now` for its present end",
    )
    limit: int = Field(default=100, ge=1, le=1000)


class FeedHeaders(BaseModel):
    """How to read, and where to go on."""

    accept: str | None = Field(default=None, description="`text/event-stream` for a stream that goes on with the feed")
    last_event_id: str | None = Field(
        default=None, description="The id of the last event of a stream; wins over `after`"
    )
