"""What the jobs' routes read from query and headers."""

from datetime import datetime
from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from penstock.clock import aware
from penstock.jobs.services import JobFilter
from penstock.jobs.states import JobState

MAX_PAGE: Final = 100
_IDEMPOTENCY: Final = "Any unique text, such as a UUID: sent again with the same request, it makes no second job"


def _known_states(text: str) -> str:
    unknown = [name for name in text.split(",") if name not in set(JobState)]
    if unknown:
        raise ValueError(f"it must be one or more of {', '.join(JobState)}, separated by commas")
    return text


Moment = Annotated[datetime, AfterValidator(aware)]


class _Query(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ListQuery(_Query):
    """Which jobs, and which page of them."""

    status: Annotated[str, AfterValidator(_known_states)] | None = Field(
        default=None, description="One or more states, separated by commas"
    )
    model: str | None = Field(default=None, min_length=1, max_length=200)
    tag: str | None = Field(default=None, min_length=1, max_length=64)
    batch: str | None = Field(default=None, min_length=1, max_length=64, description="Those of this batch's lines")
    created_after: Moment | None = Field(default=None, description="RFC 3339")
    created_before: Moment | None = Field(default=None, description="RFC 3339")
    after: str | None = Field(default=None, pattern=r"^job_[0-9a-z]{26}$", description="`next` of the page before")
    limit: int = Field(default=20, ge=1, le=MAX_PAGE)

    @model_validator(mode="after")
    def _span_not_empty(self) -> "ListQuery":
        if self.created_after and self.created_before and self.created_after >= self.created_before:
            raise ValueError("created_after must lie before created_before")
        return self

    def as_filter(self) -> JobFilter:
        """What the service filters by."""
        states = [JobState(name) for name in self.status.split(",")] if self.status else []
        return JobFilter(states, self.model, self.tag, self.batch, self.created_after, self.created_before)


class StreamQuery(_Query):
    """Where to go on, for clients that cannot set the header."""

    last_event_id: str | None = Field(default=None, description="As the header Last-Event-ID, which wins")


class SubmitHeaders(BaseModel):
    """Headers that change how a job is submitted."""

    prefer: str | None = Field(default=None, description="`wait=N` holds the request up to N seconds (at most 60)")
    traceparent: str | None = Field(default=None, description="W3C trace context, kept with the job")
    idempotency_key: str | None = Field(default=None, description=_IDEMPOTENCY)


class CallHeaders(BaseModel):
    """Headers of a call that its jobs outlive only with a key."""

    traceparent: str | None = Field(default=None, description="W3C trace context, kept with the job")
    idempotency_key: str | None = Field(default=None, description=_IDEMPOTENCY)


class RetryHeaders(BaseModel):
    """Headers that change how a job is submitted again."""

    idempotency_key: str | None = Field(default=None, description=_IDEMPOTENCY)


class StreamHeaders(BaseModel):
    """Where to go on."""

    last_event_id: str | None = Field(default=None, description="The id of the last event that was received")


class SubmitAnswerHeaders(BaseModel):
    """Headers of an accepted job."""

    location: str = Field(description="Where the job is")
    idempotent_replayed: bool | None = Field(
        default=None, description="`true` when an earlier request with the same `Idempotency-Key` made the job"
    )
