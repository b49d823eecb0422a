"""What the routes of bulk operations read. Unknown fields are refused."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from penstock.jobs.params import Strict
from penstock.jobs.queries import JobSelection
from penstock.jobs.states import JobState


class BulkRequest(Strict):
    """The body of `POST /v1/bulk`: what to do, and the jobs to do it to, as a list of jobs would be asked for."""

    action: Literal["cancel", "replay"]
    filter: JobSelection = Field(description="At least one of its members")

    @model_validator(mode="after")
    def _some_jobs(self) -> Self:
        if not self.filter.model_fields_set:
            raise ValueError("the filter must name something, such as a tag or a status")
        if not self._states:
            fitting = "queued and running" if self.action == "cancel" else "final"
            raise ValueError(f"filter.status names no state of which jobs can be {_DONE[self.action]}: {fitting} ones")
        return self

    @property
    def _states(self) -> list[JobState]:
        """The states of jobs that the action is for: of a replay those that did not succeed, unless it names them."""
        if self.filter.status is None:
            return [*_UNFINISHED] if self.action == "cancel" else [*_UNSUCCESSFUL]
        named = [JobState(name) for name in self.filter.status.split(",")]
        return [state for state in named if state.final == (self.action == "replay")]

    def stored_filter(self) -> dict[str, Any]:
        """The filter as the operation's row keeps it, its states said outright."""
        return self.filter.model_dump(mode="json", by_alias=True, exclude_none=True) | {
            "status": ",".join(self._states)
        }


_DONE = {"cancel": "cancelled", "replay": "replayed"}
_UNFINISHED = (JobState.QUEUED, JobState.RUNNING)
_UNSUCCESSFUL = (JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED)


class BulkListQuery(BaseModel):
    """Which page of the operations."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    after: str | None = Field(default=None, pattern=r"^bulk_[0-9a-z]{26}$", description="`next` of the page before")
    limit: int = Field(default=20, ge=1, le=100)


class BulkHeaders(BaseModel):
    """Headers of an operation that begins."""

    idempotency_key: str | None = Field(
        default=None, description="Any unique text: sent again with the same request, it begins no second operation"
    )
