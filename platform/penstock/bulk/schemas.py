"""What the routes of bulk operations read. Unknown fields are refused."""

from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from penstock.jobs.params import Strict
from penstock.jobs.queries import JobSelection
from penstock.jobs.states import JobState

MOST_NAMED: Final = 1000
"""Jobs that one request may name by their ids; a filter names as many as there are."""
JobId = Annotated[str, Field(pattern=r"^job_[0-9a-z]{26}$")]


class BulkRequest(Strict):
    """The body of `POST /v1/bulk`: what to do, and to which jobs, by a filter or by their ids."""

    action: Literal["cancel", "replay"]
    filter: JobSelection | None = Field(
        default=None, description="As a list of jobs would be asked for, with at least one of its members"
    )
    ids: list[JobId] | None = Field(
        default=None, min_length=1, max_length=MOST_NAMED, description="The jobs themselves, instead of a filter"
    )

    @model_validator(mode="after")
    def _some_jobs(self) -> Self:
        if (self.filter is None) == (self.ids is None):
            raise ValueError("name the jobs either by a filter or by their ids")
        if self.filter is not None:
            _refuse_empty(self.action, self.filter)
        return self

    def stored_filter(self) -> dict[str, Any]:
        """The filter as the operation's row keeps it, its states said outright; empty where ids name the jobs."""
        if self.filter is None:
            return {}
        states = {"status": ",".join(_states(self.action, self.filter))}
        return self.filter.model_dump(mode="json", by_alias=True, exclude_none=True) | states

    def targets(self) -> list[str]:
        """The jobs that are named by their ids, each once."""
        return list(dict.fromkeys(self.ids or ()))


def _refuse_empty(action: str, asked: JobSelection) -> None:
    if not asked.model_fields_set:
        raise ValueError("the filter must name something, such as a tag or a status")
    if not _states(action, asked):
        fitting = "queued and running" if action == "cancel" else "final"
        raise ValueError(f"filter.status names no state of which jobs can be {_DONE[action]}: {fitting} ones")


def _states(action: str, asked: JobSelection) -> list[JobState]:
    """The states of jobs that the action is for: of a replay those that did not succeed, unless it names them."""
    if asked.status is None:
        return [*_UNFINISHED] if action == "cancel" else [*_UNSUCCESSFUL]
    named = [JobState(name) for name in asked.status.split(",")]
    return [state for state in named if state.final == (action == "replay")]


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
