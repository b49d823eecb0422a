"""What the routes of rollouts read. Unknown fields are refused."""

from typing import Annotated, Final, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from penstock.jobs.states import JobState
from penstock.rollouts.assignment import Arm
from penstock.rollouts.counted import Sought
from penstock.rollouts.flips import Order
from penstock.rollouts.policy import Policy
from penstock.rollouts.rehearsal import Effect
from penstock.rollouts.states import State
from penstock.strict_model import Strict, wrong_at

MOST_WORK: Final = 4_000_000
"""Rehearsed jobs, over all runs: some five seconds."""
ModelName = Annotated[str, Field(min_length=1, max_length=200)]
Reason = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1000)]


class RolloutRequest(Strict):
    """A version that is to earn its place."""

    model: ModelName
    version: Annotated[str, Field(min_length=1, max_length=50, description="Its number in MLflow")]
    policy: Policy | None = Field(default=None, description="Without it the model's own, or else the default one")
    reason: Reason | None = None


class MoveRequest(Strict):
    """Why an operator moves a rollout; it stands in the ledger and in the record."""

    reason: Reason


class PolicyRequest(Strict):
    """The policy of a model's next rollouts; those under way keep theirs."""

    policy: Policy
    reason: Reason | None = None


class EffectRequest(Strict):
    """What the rehearsed candidate is like. What is left out is as with the champion."""

    errors: float = Field(default=1.0, gt=0, le=1000, description="Fails so many times as often")
    latency: float = Field(default=1.0, gt=0, le=100, description="Takes so many times as long")
    mean_kld: float = Field(default=0.05, gt=0, le=1, description="A job's mean divergence in the shadow, in nats")
    disagreement: float = Field(default=0.05, gt=0, lt=1, description="Tokens that were not its first choice")

    @property
    def effect(self) -> Effect:
        return Effect(**self.model_dump())


class SimulationRequest(Strict):
    """Rollouts to rehearse, of a candidate without harm and of one with the effect."""

    model: ModelName | None = Field(default=None, description="Whose stored policy is meant, where none is given")
    policy: Policy | None = None
    effect: EffectRequest
    champion_error: float = Field(default=0.01, gt=0, lt=1, description="The part of its jobs that fail")
    jobs: int = Field(default=20_000, ge=200, le=1_000_000, description="Where a run ends")
    runs: int = Field(default=100, ge=10, le=2_000, description="More make it more exact")
    seed: int = Field(default=0, ge=0, lt=2**53)

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.jobs * self.runs > MOST_WORK:
            raise wrong_at("runs", f"jobs times runs may be {MOST_WORK:,} here; `penstock rollout simulate` takes more")
        return self


class _Query(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    limit: int = Field(default=20, ge=1, le=100)


class RolloutListQuery(_Query):
    """Which rollouts, and which page of them."""

    model: str | None = Field(default=None, max_length=200)
    status: State | None = None
    after: str | None = Field(default=None, pattern=r"^rol_[0-9a-z]{26}$", description="`next` of the page before")


class DecisionQuery(_Query):
    """Which moves, and which page of them."""

    model: str | None = Field(default=None, max_length=200)
    rollout: str | None = Field(default=None, max_length=100)
    after: str | None = Field(default=None, pattern=r"^dcs_[0-9a-z]{26}$", description="`next` of the page before")


class CountedJobQuery(_Query):
    """Which jobs of a rollout, and which page of them."""

    arm: Arm | None = None
    status: JobState | None = None
    rerouted: bool = Field(default=False, description="Those alone that the rollout's end sent to the champion")
    after: str | None = Field(default=None, pattern=r"^job_[0-9a-z]{26}$", description="`next` of the page before")

    @property
    def sought(self) -> Sought:
        return Sought(self.arm, self.status, self.rerouted)


class FlipQuery(_Query):
    """Which answers come first."""

    order: Order = Field(default=Order.DIVERGENCE, description="By the largest mean divergence, or as it says")


class RolloutHeaders(BaseModel):
    """Headers of a rollout that starts."""

    idempotency_key: str | None = Field(
        default=None, description="Any unique text: sent again with the same request, it starts no second rollout"
    )


class WatchHeaders(BaseModel):
    """Headers of who looks again and again."""

    if_none_match: str | None = Field(default=None, description="The `ETag` of the last answer: 304 if it still holds")
