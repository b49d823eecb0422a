"""How rollouts, their policies and the ledger look from outside."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from penstock.jobs.states import JobState
from penstock.rollouts.assignment import Arm
from penstock.rollouts.flips import FlipDocument
from penstock.rollouts.policy import Policy
from penstock.rollouts.states import Move, State
from penstock.rollouts.verdicts import Verdict


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid")


class VersionDocument(_Document):
    """One of the two versions."""

    version: str
    deployment_id: str
    digest: str = Field(description="SHA-256 of the manifest of its files")
    scheme: str = Field(description="In which its weights are stored")


class RolloutDocument(_Document):
    """A candidate's way towards serving its model's jobs, and where it stands."""

    id: str
    object: Literal["rollout"]
    model: str
    candidate: VersionDocument
    champion: VersionDocument = Field(description="What it is compared with")
    status: State
    step: int = Field(description="The canary's, from 0")
    paused_in: State | None = Field(description="Where it goes on when it is resumed")
    share: float = Field(description="The part of new jobs that the candidate gets; in the shadow, that it scores")
    note: str | None = Field(
        description="Why the candidate gets nothing just now, where its gate would give it something"
    )
    unit: str = Field(description="What stays with one version: `job`, `user` or `tenant`")
    policy_version: str
    created_at: datetime
    stage_started_at: datetime = Field(description="Since when it is in this gate, all steps together")
    entered_at: datetime = Field(description="Since when it is in this step")
    finished_at: datetime | None


class Place(_Document):
    """One of the positions that the policy leads through."""

    status: State
    step: int
    title: str
    share: float
    progress: Literal["passed", "here", "ahead", "stopped", "not_reached"] = Field(
        description="`stopped`: it ended here; `here`: it stands here, maybe paused"
    )
    entered_at: datetime | None
    left_at: datetime | None


class ReasonDocument(_Document):
    """A guardrail's, or a condition's, part in a judgement."""

    name: str
    verdict: Verdict
    text: str
    figures: dict[str, float] = Field(
        description="Of a test the natural logs of its evidence and of the `threshold` that decides, the interval from "
        "`low` to `high` that holds at every look, its `margin` and `units`; of a limit `value`, `limit` and `noise`"
    )
    jobs_needed: int | None = Field(description="Null where no number would do")


class JudgementDocument(_Document):
    """A verdict with its reasons, those that decided it first."""

    verdict: Verdict
    jobs_needed: int | None = Field(description="How many more would end it, if all went on as until now")
    reasons: list[ReasonDocument]


class RateDocument(_Document):
    """A share of one arm's units, with the interval that holds it with 95%, at every look at once."""

    count: int
    rate: float | None
    low: float | None
    high: float | None


class ArmDocument(_Document):
    """What one version has shown in a stage."""

    units: int
    failures: RateDocument = Field(description="Those that a model can cause")
    slow: int = Field(description="Units slower than the champion's frozen quantile")
    judged: int = Field(description="Units that sent feedback")


class SampleDocument(_Document):
    """Values of one kind that were seen, their mean and its interval."""

    units: int
    mean: float | None
    low: float | None
    high: float | None


class SampleRatioDocument(_Document):
    """Whether units were assigned by the planned shares: an alarm at `threshold`."""

    planned: float | None = Field(description="The candidate's share, over all units")
    seen: float | None
    log_evidence: float
    threshold: float


class FreeSideDocument(_Document):
    """One version on requests that both were given. Means are of jobs that both answered."""

    failures: int
    mean_seconds: float | None = Field(description="From a job's start to its end, where each began once")
    mean_device_seconds: float | None


class FreeDocument(_Document):
    """Jobs of the shadow that the candidate answered, too, for nobody's eyes."""

    jobs: int
    answered: int = Field(description="By both")
    exact: float | None = Field(description="Part of these with the same tokens to the last")
    errors: SampleDocument = Field(description="Candidate less champion, by job")
    candidate: FreeSideDocument
    champion: FreeSideDocument


class EvidenceDocument(_Document):
    """What a gate has seen, as figures."""

    seconds: float
    step_units: int
    crashes: int
    arms: dict[str, ArmDocument] = Field(description="`candidate` and `champion`")
    sample_ratio: SampleRatioDocument
    lost: int = Field(description="Shadow: sampled jobs that could not be scored")
    free: FreeDocument
    scored: dict[str, SampleDocument] = Field(description="Shadow: `mean_kld` and `disagreement`, by job")
    pairs: dict[str, SampleDocument] = Field(description="Candidate less champion: `errors`, `slow`, `feedback`")
    offline: dict[str, Any] | None = Field(description="The evaluation's figures, with the digests that it judged")
    trouble: str | None = Field(description="Why the offline gate has no figures")


class PointDocument(_Document):
    """How a gate stood at a moment."""

    at: datetime
    verdict: Verdict
    jobs_needed: int | None
    guards: dict[str, dict[str, Any]] = Field(description="Each guardrail's `verdict` and figures")


class GateDocument(_Document):
    """One gate: what it has seen, its last judgement of that, and how that went."""

    status: State
    step: int
    title: str
    judged_at: datetime
    judgement: JudgementDocument
    evidence: EvidenceDocument
    history: list[PointDocument] = Field(description="Oldest first, some five hundred at most")


class DeciderDocument(_Document):
    """Who made a move."""

    kind: str
    id: str
    name: str


class DecisionDocument(_Document):
    """One move in the ledger, which nobody alters."""

    id: str
    object: Literal["decision"]
    rollout_id: str | None = Field(description="Null for an alias that was moved by hand in MLflow")
    model: str
    number: int = Field(description="Counts from 1 without a gap, within the rollout or the model's moves by hand")
    move: Move | str
    from_status: State | None
    from_step: int | None
    to_status: State | None
    to_step: int | None
    from_version: str | None = Field(description="Which version jobs went to before")
    to_version: str | None
    actor: DeciderDocument
    reason: str | None
    policy_version: str | None
    judgement: JudgementDocument | None
    artifacts: dict[str, Any] = Field(
        description="Version and digest of `champion` and `candidate`; of a move by hand, `from` and `to`"
    )
    jobs: dict[str, Any] = Field(description="Those that `failed`, or were `rerouted` by it: how many, and 100 ids")
    decided_at: datetime


class CountedJobDocument(_Document):
    """One job of a rollout, without its text."""

    object: Literal["rollout_job"]
    job_id: str
    tenant_id: str
    arm: Arm | None = Field(
        description="Null for one that waited for the candidate after its promotion, taken back since"
    )
    stage: str | None = Field(description="`shadow`, `canary` or `ab`")
    step: int | None
    version: str = Field(description="Which served it, or is to")
    status: JobState
    error: str | None = Field(description="The code of a failed job's error")
    rerouted: bool = Field(description="Whether the rollout's end sent it to the champion")
    assigned_at: datetime | None
    counted_at: datetime | None = Field(description="When what came of it became evidence; null while it has not")
    finished_at: datetime | None


class CountedJobPage(_Document):
    """A page of a rollout's jobs, newest first."""

    object: Literal["list"]
    data: list[CountedJobDocument]
    has_more: bool
    next: str | None


class DecisionDetail(DecisionDocument):
    """A move with the evidence from which it can be judged again."""

    evidence: dict[str, Any] | None


class RolloutDetail(RolloutDocument):
    """A rollout with its course, its gates and its moves."""

    policy: Policy
    course: list[Place]
    gates: list[GateDocument] = Field(description="Those that were judged, in the order of the course")
    decisions: list[DecisionDocument]


class RolloutPage(_Document):
    """A page of rollouts, newest first."""

    object: Literal["list"]
    data: list[RolloutDocument]
    has_more: bool
    next: str | None


class DecisionPage(_Document):
    """A page of the ledger, newest first."""

    object: Literal["list"]
    data: list[DecisionDetail]
    has_more: bool
    next: str | None


class FlipList(_Document):
    """Answers on which the versions differ."""

    object: Literal["list"]
    data: list[FlipDocument]


class PolicyDocument(_Document):
    """The policy of a model's rollouts."""

    object: Literal["rollout_policy"]
    model: str
    number: int = Field(description="Rises with each change; 0 is the default policy, which nobody set")
    version: str = Field(description="Twelve digits of the SHA-256 of all that it says")
    policy: Policy
    actor: DeciderDocument | None
    reason: str | None
    created_at: datetime | None


class StageCost(_Document):
    """What a stage of the rehearsed runs took."""

    title: str
    runs: int = Field(description="That came there")
    passed: int
    rolled_back: int
    jobs_median: int | None
    jobs_most: int | None = Field(description="For nine in ten")


class EndDocument(_Document):
    """Runs that ended so: jobs since the rollout began, and how many the candidate had served."""

    rate: float
    jobs_median: float | None
    served_median: float | None
    jobs_most: float | None = Field(description="For nine in ten")
    served_most: float | None


class RehearsalDocument(_Document):
    """Rehearsed runs of one kind of candidate."""

    effect: dict[str, float]
    passed: EndDocument
    rolled_back: EndDocument
    undecided: float
    stages: list[StageCost]


class SimulationDocument(_Document):
    """What a policy would cost: of a version that is as good, and of one with the effect."""

    object: Literal["rollout_simulation"]
    policy_version: str
    runs: int
    jobs: int
    champion_error: float
    seed: int
    harmless: RehearsalDocument
    harmful: RehearsalDocument
