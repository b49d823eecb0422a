"""What the jobs' routes read from query and headers."""

from datetime import datetime
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from penstock.clock import aware
from penstock.jobs.filters import JobFilter
from penstock.jobs.states import JobClass, JobState

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


class JobSelection(_Query):
    """Which jobs."""

    status: Annotated[str, AfterValidator(_known_states)] | None = Field(
        default=None, description="One or more states, separated by commas"
    )
    model: str | None = Field(default=None, min_length=1, max_length=200, description="Its name, or as asked for")
    version: str | None = Field(default=None, min_length=1, max_length=64, description="Of the `model`")
    tag: str | None = Field(default=None, min_length=1, max_length=64)
    job_class: Literal["interactive", "batch", "shadow"] | None = Field(default=None, alias="class")
    key: str | None = Field(default=None, min_length=1, max_length=64, description="The id of the key that sent them")
    batch: str | None = Field(default=None, min_length=1, max_length=64, description="Those of this batch's lines")
    error: str | None = Field(default=None, min_length=1, max_length=64, description="The code of why they failed")
    created_after: Moment | None = Field(default=None, description="RFC 3339")
    created_before: Moment | None = Field(default=None, description="RFC 3339")
    finished_after: Moment | None = Field(default=None, description="RFC 3339")
    finished_before: Moment | None = Field(default=None, description="RFC 3339")

    @model_validator(mode="after")
    def _something_can_match(self) -> Self:
        if self.created_after and self.created_before and self.created_after >= self.created_before:
            raise ValueError("created_after must lie before created_before")
        if self.finished_after and self.finished_before and self.finished_after >= self.finished_before:
            raise ValueError("finished_after must lie before finished_before")
        if self.version is not None and self.model is None:
            raise ValueError("a version needs its model")
        return self

    def as_filter(self) -> JobFilter:
        """What the service filters by."""
        return JobFilter(
            [JobState(name) for name in self.status.split(",")] if self.status else [],
            job_class=JobClass[self.job_class.upper()] if self.job_class else None,
            **self.model_dump(exclude={"status", "job_class", *_PAGING}),
        )


_PAGING: Final = ("after", "limit")


class ListQuery(JobSelection):
    """Which jobs, and which page of them."""

    after: str | None = Field(default=None, pattern=r"^job_[0-9a-z]{26}$", description="`next` of the page before")
    limit: int = Field(default=20, ge=1, le=MAX_PAGE)


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
