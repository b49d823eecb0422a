"""What the webhooks' routes read. Unknown fields are refused."""

from datetime import datetime
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from penstock.clock import aware
from penstock.jobs.events import EventType
from penstock.webhooks.endpoints import EndpointChange

WebhookEventName = Literal[
    "job.queued", "job.running", "job.progress", "job.requeued", "job.rerouted", "job.cancel_requested",
    "output.rewound", "job.succeeded", "job.failed", "job.cancelled", "job.expired", "job.feedback",
    "webhook_endpoint.disabled",
    "batch.created", "batch.in_progress", "batch.paused", "batch.resumed", "batch.finalizing", "batch.cancelling",
    "batch.completed", "batch.failed", "batch.expired", "batch.cancelled",
    "bulk.created", "bulk.running", "bulk.completed", "bulk.cancelled",
    "rollout.started", "rollout.verdict", "rollout.paused", "rollout.resumed", "rollout.aborted", "rollout.promoted",
    "rollout.rejected", "rollout.rolled_back",
    "model.champion_moved", "model.champion_removed", "model.champion_set_back",
]  # fmt: skip
FINAL_EVENTS: Final = [event.value for event in EventType if event.final]
_WEEK_SECONDS: Final = 7 * 86_400
_DAY_SECONDS: Final = 86_400


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must hold printable characters alone")
    return text


def _each_once(events: list[str]) -> list[str]:
    if len(set(events)) < len(events):
        raise ValueError("must name each event once")
    return events


Url = Annotated[str, StringConstraints(min_length=1, max_length=2048), AfterValidator(_one_line)]
Description = Annotated[str, StringConstraints(strip_whitespace=True, max_length=200), AfterValidator(_one_line)]
Events = Annotated[list[WebhookEventName], Field(min_length=1), AfterValidator(_each_once)]
Moment = Annotated[datetime, AfterValidator(aware), Field(strict=False)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class WebhookEndpointRequest(_Body):
    """An address for the events of all the tenant's jobs."""

    url: Url = Field(description="https:// or http://, at a public address")
    description: Description = ""
    events: Events = Field(default=FINAL_EVENTS, validate_default=True, description="Which events it gets")


class WebhookEndpointChangeRequest(_Body):
    """What becomes different of an endpoint; what is left out stays."""

    url: Url | None = None
    description: Description | None = None
    events: Events | None = None
    disabled: bool | None = Field(default=None, description="Send nothing more, or go on after it was disabled")

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.model_dump(exclude_none=True):
            raise ValueError("give at least one of url, description, events and disabled")
        return self

    def change(self) -> EndpointChange:
        """What the service changes."""
        return EndpointChange(**self.model_dump())


class RotateRequest(_Body):
    """How to change over to a fresh secret."""

    grace_seconds: int = Field(
        default=_DAY_SECONDS, ge=0, le=_WEEK_SECONDS, description="How long the old secret signs as well"
    )


class ReplayRequest(_Body):
    """Which of an endpoint's deliveries to send again, by the time at which they were queued."""

    since: Moment
    until: Moment | None = None
    delivered: bool = Field(default=False, description="Also those that arrived")

    @model_validator(mode="after")
    def _span_not_empty(self) -> Self:
        if self.until is not None and self.since >= self.until:
            raise ValueError("since must lie before until")
        return self


class DeliveryQuery(BaseModel):
    """Which deliveries, and which page of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    endpoint: str | None = Field(default=None, max_length=100, description="Those to this endpoint")
    job: str | None = Field(default=None, max_length=100, description="Those of this job's events")
    status: Literal["waiting", "delivered", "failed"] | None = None
    after: str | None = Field(default=None, pattern=r"^msg_[0-9a-z]{26}$", description="`next` of the page before")
    limit: int = Field(default=20, ge=1, le=100)
