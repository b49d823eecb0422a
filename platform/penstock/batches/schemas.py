"""What the batches' routes read. Unknown fields are refused."""

import re
from datetime import datetime, timedelta
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from penstock.batches.lines import Endpoint
from penstock.clock import aware
from penstock.files.uploads import LEAST_EXPIRY_SECONDS, MOST_EXPIRY_SECONDS
from penstock.jobs.params import Strict

_WINDOW: Final = re.compile(r"([1-9][0-9]{0,4})([mhd])")
_UNITS: Final = {"m": "minutes", "h": "hours", "d": "days"}
_LONGEST: Final = timedelta(days=30)
Priority = Annotated[int, Field(ge=-100, le=100)]
MetadataText = Annotated[str, StringConstraints(max_length=512)]


class OutputExpiry(Strict):
    """When the output and error files go."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=LEAST_EXPIRY_SECONDS, le=MOST_EXPIRY_SECONDS)


class BatchRequest(Strict):
    """The body of `POST /v1/batches`. The fields from `deadline` on are ours; OpenAI has none like them."""

    input_file_id: str = Field(min_length=1, max_length=64, description="A file with a request on each line")
    endpoint: Endpoint = Field(description="Where each line would be sent")
    completion_window: str = Field(description="How long it may take, up to 30 days: 24h, 90m, 7d")
    metadata: dict[str, MetadataText] | None = Field(default=None, max_length=16)
    output_expires_after: OutputExpiry | None = None
    deadline: datetime | None = Field(default=None, strict=False, description="RFC 3339; it expires then, or before")
    priority: Priority = Field(default=0, description="Of its jobs, within the class batch")
    invalid_lines: Literal["refuse", "skip"] = Field(
        default="refuse", description="A wrong line fails the batch, or goes to the error file alone"
    )

    @field_validator("completion_window")
    @classmethod
    def _a_span(cls, window: str) -> str:
        if not _WINDOW.fullmatch(window) or span_of(window) > _LONGEST:
            raise ValueError("must be a span of at most 30 days, such as 24h, 90m or 7d")
        return window

    @field_validator("deadline")
    @classmethod
    def _aware(cls, deadline: datetime | None) -> datetime | None:
        return aware(deadline) if deadline is not None else None


class BatchChangeRequest(Strict):
    """What becomes different of a batch."""

    priority: Priority


class BatchRetryRequest(Strict):
    """Which lines to try again: those of these custom ids, or all that did not succeed for a reason that may pass."""

    custom_ids: list[str] | None = Field(default=None, min_length=1, max_length=1000)
    completion_window: str | None = Field(default=None, description="The old batch's without it")

    @model_validator(mode="after")
    def _a_span(self) -> Self:
        if self.completion_window is not None and not _WINDOW.fullmatch(self.completion_window):
            raise ValueError("completion_window must be a span of at most 30 days, such as 24h, 90m or 7d")
        return self


class _Query(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BatchListQuery(_Query):
    """Which page."""

    after: str | None = Field(default=None, pattern=r"^batch_[0-9a-z]{26}$", description="`last_id` of the page before")
    limit: int = Field(default=20, ge=1, le=100)


class BatchResultsQuery(_Query):
    """Where to go on, and how much at once."""

    after: int = Field(default=0, ge=0, le=2**31 - 1, description="`next` of the page before; 0 is the beginning")
    limit: int = Field(default=100, ge=1, le=100)


class ResultsHeaders(BaseModel):
    """How to read."""

    accept: str | None = Field(default=None, description="`application/jsonl` for all that have finished, a line each")


def span_of(window: str) -> timedelta:
    """The time that a window names."""
    found = _WINDOW.fullmatch(window)
    assert found is not None
    units: dict[str, Any] = {_UNITS[found[2]]: int(found[1])}
    return timedelta(**units)
