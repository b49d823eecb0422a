"""What a wish for a deployment may say. Unknown fields are refused."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from penstock.auth.schemas import Name
from penstock.deployments.placement import Desired, HostingMode

_MONTH_SECONDS = 31 * 86_400


class PlacementRequest(BaseModel):
    """Where and how a version is to be hosted, as a whole: what is left out has its default."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    workers: list[Name] | None = Field(
        default=None,
        min_length=1,
        max_length=100,
        description="Names of hosts, and labels of workers, any of which will do; all workers without it",
    )
    replicas: Annotated[int, Field(ge=0, le=10_000)] | None = Field(
        default=None, description="On how many of those workers; on all of them without it, and 0 is nowhere"
    )
    kv_share: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="Share of a device's memory for K and V; by its share of the traffic without it",
    )
    mode: HostingMode = Field(
        default=HostingMode.WARM,
        strict=False,
        description="`warm` stays loaded; `cold` is loaded while jobs wait for it, and leaves where room is short",
    )
    idle_seconds: Annotated[float, Field(ge=1, le=_MONTH_SECONDS)] = Field(
        default=300.0,
        description="How long a cold version stays loaded without a job, and at least before another takes its room",
    )

    def desired(self) -> Desired:
        """The same for services."""
        workers = None if self.workers is None else tuple(self.workers)
        return Desired(workers, self.replicas, self.kv_share, self.mode, self.idle_seconds)
