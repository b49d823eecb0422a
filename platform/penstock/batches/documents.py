"""How a batch looks from outside: OpenAI's members, Unix seconds and all, and behind them ours."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from penstock.batches.models import Batch
from penstock.batches.progress import Progress
from penstock.batches.states import BatchState
from penstock.clock import iso


class _Exactly(BaseModel):
    model_config = ConfigDict(extra="forbid")


class BatchLineError(_Exactly):
    """What is wrong with a line of the input."""

    code: str
    message: str
    param: str | None = Field(description="The field at fault, dotted")
    line: int | None = Field(description="Its number in the file, from 1; null for the file as a whole")


class BatchErrors(_Exactly):
    """The first 1,000 errors."""

    object: Literal["list"]
    data: list[BatchLineError]
    total: int = Field(description="How many there are")


class BatchCounts(_Exactly):
    """`failed` are all that did not succeed: failed, invalid, cancelled and expired."""

    total: int
    completed: int
    failed: int


class BatchLines(_Exactly):
    """Lines by where they stand, exactly."""

    total: int
    unsubmitted: int = Field(description="Without a job yet")
    waiting: int
    running: int
    succeeded: int
    failed: int
    cancelled: int
    expired: int
    invalid: int


class BatchUsage(_Exactly):
    """The tokens of all settled lines."""

    input_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens: int
    output_tokens_details: dict[str, int]
    total_tokens: int


class BatchLineFailure(_Exactly):
    """Why there is no answer, or no job."""

    code: str
    message: str


class BatchDocument(_Exactly):
    """A batch. Moments are Unix seconds where OpenAI has them, and RFC 3339 in `eta`."""

    id: str
    object: Literal["batch"]
    endpoint: str
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: Literal[
        "validating", "in_progress", "paused", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled"
    ]
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: BatchCounts
    usage: BatchUsage
    metadata: dict[str, str]
    priority: int
    invalid_lines: Literal["refuse", "skip"]
    retry_of: str | None
    paused_at: int | None
    lines: BatchLines
    blocker: BatchLineFailure | None = Field(description="Why no job can be made of its next line just now")
    lines_per_minute: float | None = Field(description="As measured over the last 500 lines; null before five")
    eta: datetime | None = Field(description="When it is through at that rate")


class BatchPage(_Exactly):
    """A page of batches, newest first."""

    object: Literal["list"]
    data: list[BatchDocument]
    first_id: str | None
    last_id: str | None = Field(description="Give it as `after` to get the next page")
    has_more: bool


class BatchLineAnswer(_Exactly):
    """What the endpoint would have answered."""

    status_code: int
    request_id: str = Field(description="The job's id")
    body: dict[str, Any]


class BatchResult(_Exactly):
    """What came of one line: a line of the output file, or of the error file."""

    id: str
    custom_id: str | None = Field(description="Null for a line that had none to be read")
    response: BatchLineAnswer | None
    error: BatchLineFailure | None
    line: int = Field(description="Its number in the input file, from 1")
    status: Literal["succeeded", "failed", "cancelled", "expired", "invalid"]


class BatchResultPage(_Exactly):
    """Results in the order in which the lines finished."""

    object: Literal["list"]
    data: list[BatchResult]
    has_more: bool = Field(description="Whether more have finished already")
    next: int = Field(description="Give it as `after`, now or later, to read on without gap or repeat")


def batch_document(batch: Batch, progress: Progress) -> dict[str, Any]:
    """As `BatchDocument`."""
    counts = progress.counts
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": _errors(batch),
        "input_file_id": batch.input_file_id,
        "completion_window": batch.completion_window,
        "status": batch.status,
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        **_moments(batch),
        "request_counts": {
            "total": counts["total"],
            "completed": counts["succeeded"],
            "failed": sum(counts[state] for state in ("failed", "invalid", "cancelled", "expired")),
        },
        "usage": _usage(batch),
        "metadata": batch.user_metadata,
        "priority": batch.priority,
        "invalid_lines": batch.invalid_lines,
        "retry_of": batch.retry_of,
        "paused_at": unix(batch.paused_at),
        "lines": counts,
        "blocker": batch.blocker,
        "lines_per_minute": round(progress.rate * 60, 3) if progress.rate is not None else None,
        "eta": iso(progress.eta),
    }


def unix(moment: datetime | None) -> int | None:
    """Whole seconds since 1970, as OpenAI tells time."""
    return int(moment.timestamp()) if moment is not None else None


def _moments(batch: Batch) -> dict[str, int | None]:
    ended = {
        f"{state.value}_at": unix(batch.finished_at) if batch.state == state else None
        for state in (BatchState.COMPLETED, BatchState.FAILED, BatchState.EXPIRED, BatchState.CANCELLED)
    }
    return {
        "created_at": unix(batch.created_at),
        "in_progress_at": unix(batch.in_progress_at),
        "expires_at": unix(batch.expires_at),
        "finalizing_at": unix(batch.finalizing_at),
        "cancelling_at": unix(batch.cancelling_at),
        **ended,
    }


def _errors(batch: Batch) -> dict[str, Any] | None:
    return {"object": "list", "data": batch.errors, "total": batch.error_count} if batch.error_count else None


def _usage(batch: Batch) -> dict[str, Any]:
    return {
        "input_tokens": batch.prompt_tokens,
        "input_tokens_details": {"cached_tokens": batch.cached_tokens},
        "output_tokens": batch.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": batch.prompt_tokens + batch.output_tokens,
    }
