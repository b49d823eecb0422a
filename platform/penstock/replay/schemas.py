"""What the routes of replays read. Unknown fields are refused."""

from datetime import datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from penstock.clock import aware
from penstock.jobs.params import Strict
from penstock.strict_model import wrong_at

MOST_JOBS = 100_000


class ReplayRequest(Strict):
    """The body of `POST /v1/admin/replays`: which version is tried, and the stored jobs that it is tried on."""

    model: str = Field(
        min_length=1, max_length=200, description="The version that is tried: name@challenger or name:version"
    )
    against: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="The version whose stored jobs are replayed: name@champion, the default, or name:version",
    )
    mode: Literal["teacher", "free", "both"] = Field(
        default="teacher",
        description="`teacher`: both versions score the stored answers. `free`: the tried one answers anew",
    )
    since: datetime | None = Field(default=None, strict=False, description="Jobs that ended from then on")
    until: datetime | None = Field(default=None, strict=False, description="Jobs that ended before then")
    tenant: str | None = Field(default=None, min_length=1, max_length=100, description="Jobs of this tenant, by its id")
    limit: int = Field(default=1000, ge=1, le=MOST_JOBS, description="The newest so many")

    @field_validator("since", "until")
    @classmethod
    def _aware(cls, moment: datetime | None) -> datetime | None:
        return aware(moment) if moment is not None else None

    @model_validator(mode="after")
    def _some_time(self) -> Self:
        if self.since is not None and self.until is not None and self.until <= self.since:
            raise wrong_at("until", "must be later than since")
        return self

    def stored_filter(self) -> dict[str, Any]:
        """Which jobs, as the replay's row keeps it."""
        return self.model_dump(mode="json", include={"since", "until", "tenant", "limit"})


class ReplayListQuery(BaseModel):
    """Which page of the replays."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    after: str | None = Field(default=None, pattern=r"^rpl_[0-9a-z]{26}$", description="`next` of the page before")
    limit: int = Field(default=20, ge=1, le=100)
