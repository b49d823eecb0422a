"""What a version has to show before it serves, as a document: a policy, in YAML or JSON, one for each model.

Every member has a default, so that `{}` is the default policy. Documents are checked exactly; an error names the member
by its path. `Policy.version` is a hash of the whole, defaults included: a verdict says by which policy it was given.
"""

import hashlib
import json
import re
from collections.abc import Hashable
from enum import StrEnum
from typing import Annotated, Any, Final, Self

import yaml
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from penstock.errors import InvalidJson, ValidationFailed
from penstock.problems import explain_validation, refuse_field
from penstock.rollouts.assignment import Unit
from penstock.strict_model import Strict, wrong_at

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION: Final = re.compile(r"([0-9]{1,9})([smhd])")


def _seconds(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    found = _DURATION.fullmatch(value)
    if found is None:
        raise ValueError("give a duration such as 45s, 30m, 12h or 7d, or a number of seconds")
    return int(found[1]) * _UNITS[found[2]]


Duration = Annotated[int, BeforeValidator(_seconds), Field(ge=1)]
"""Seconds; written as a number of them, or as `45s`, `30m`, `12h`, `7d`."""
Alpha = Annotated[float, Field(gt=0, le=0.2)]
"""The chance of being wrong that is put up with."""
Share = Annotated[float, Field(gt=0, le=0.5)]
"""The candidate's part of the units. Above one half the champion, who is compared with, would have fewer."""
Margin = Annotated[float, Field(gt=0, lt=1)]
"""How much worse still counts as no worse."""
Count = Annotated[int, Field(ge=1, le=10_000_000)]


class OnTimeout(StrEnum):
    """What follows when a gate has not decided in time."""

    HOLD = "hold"
    ROLLBACK = "rollback"


class StartedJobs(StrEnum):
    """What a rollback does with jobs that the candidate has begun; those that wait always go to the champion."""

    FINISH = "finish"
    RESTART = "restart"


class Alphas(Strict):
    """How sure verdicts are. A false rollback costs a day, a false promotion an incident."""

    rollback: Alpha = 0.05
    """Chance that a harmless version is rolled back in a stage, over all its guardrails."""
    promotion: Alpha = 0.01
    """Chance that a guardrail passes a version that is worse than its margin."""
    sample_ratio: Alpha = 0.001


class Limits(Strict):
    """What the candidate may lose on the held-out set, against its parent or the champion."""

    mean_kld: Annotated[float, Field(gt=0)]
    """Mean KL divergence of next-token distributions over the full vocabulary, in nats."""
    same_top: Annotated[float, Field(gt=0, lt=1)]
    """Least part of positions at which both would choose the same token."""
    perplexity_increase: Annotated[float, Field(gt=0)]
    """0.03: perplexity may be 3% higher."""
    flips: Annotated[float, Field(gt=0, lt=1)]
    """Most part of a task's answers that may turn from right to wrong or from wrong to right."""


_EIGHT_BITS: Final = Limits(mean_kld=0.005, same_top=0.98, perplexity_increase=0.005, flips=0.02)
_FOUR_BITS: Final = Limits(mean_kld=0.05, same_top=0.92, perplexity_increase=0.03, flips=0.06)


class Reference(StrEnum):
    """With what the offline gate compares: the version that serves, or the one that the candidate was made of."""

    CHAMPION = "champion"
    PARENT = "parent"


class Offline(Strict):
    """On a held-out set, before any job is touched. Weights of 5 to 16 bits take the limits of 8, fewer those of 4."""

    reference: Reference = Reference.CHAMPION
    data: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """A file of whoever starts the rollout, by its id; without it the model's newest jobs."""
    jobs: Annotated[int, Field(ge=1, le=4096)] = 256
    """How many of those, of every tenant."""
    eight_bits: Limits = _EIGHT_BITS
    four_bits: Limits = _FOUR_BITS
    minimum_tokens: Count = 10_000
    memory_ratio: Annotated[float, Field(gt=0)] | None = None
    """Most bytes that its weights may hold in memory, relative to the reference's; null sets no limit."""
    speed_ratio: Annotated[float, Field(gt=0)] | None = None
    """Fewest tokens a second, relative to the reference's; null sets no limit."""

    def limits(self, bits: float) -> Limits:
        """Those for weights of so many bits."""
        return self.eight_bits if bits > 4 else self.four_bits


class Shadow(Strict):
    """The candidate scores a sample of the champion's answers, which nobody waits for. Unit: the job."""

    sampling: Annotated[float, Field(gt=0, le=1)] = 0.05
    free_running: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Part of those jobs that the candidate answers as well, so that its failures and times are seen; 0 is none."""
    mean_kld: Margin = 0.2
    """Most mean divergence of a job, in nats, each job's counting up to 1."""
    disagreement: Margin = 0.15
    """Most part of a job's tokens, in the mean, that would not have been the candidate's first choice where they
    were the champion's."""
    minimum_jobs: Count = 100
    timeout: Duration = 48 * 3600
    on_timeout: OnTimeout = OnTimeout.HOLD


class Step(Strict):
    """One share of the canary, and what it has to prove: small shares prove little, and cost little."""

    share: Share
    error_margin: Margin
    """The candidate's error rate is proven to be at most this much above the champion's: 0.02 is 2 points."""
    slow_margin: Margin
    """The same for jobs that are slower than the champion's `latency.quantile`."""
    minimum_jobs: Count = 20
    """So many units of the candidate in this step, at least."""
    timeout: Duration = 24 * 3600
    on_timeout: OnTimeout = OnTimeout.HOLD


_STEPS: Final = (
    Step(share=0.01, error_margin=0.25, slow_margin=0.3),
    Step(share=0.05, error_margin=0.1, slow_margin=0.15),
    Step(share=0.25, error_margin=0.04, slow_margin=0.07, minimum_jobs=100),
    Step(share=0.5, error_margin=0.02, slow_margin=0.04, minimum_jobs=200),
)


class Errors(Strict):
    """The guardrail of failures that a model can cause."""

    tolerated_ratio: Annotated[float, Field(ge=1, le=10)] = 1.0
    """Only more failures than this, relative to the champion's, are harm."""


class Latency(Strict):
    """The guardrail of jobs slower than the champion's quantile, which is frozen for each stratum when it begins."""

    quantile: Annotated[float, Field(ge=0.5, lt=1)] = 0.95
    prompt_tokens: tuple[Count, ...] = (512, 4096)
    """The strata: prompts of fewer tokens than the first, than the second, and so on, and the rest. Jobs that met a
    model not yet warm count in none."""
    tolerated_ratio: Annotated[float, Field(ge=1, le=10)] = 1.25

    @model_validator(mode="after")
    def _ascend(self) -> Self:
        if list(self.prompt_tokens) != sorted(set(self.prompt_tokens)):
            raise wrong_at("prompt_tokens", "give the strata's bounds in ascending order, each once")
        return self

    @property
    def strata(self) -> tuple[str, ...]:
        """Their names."""
        return (*(f"<{bound}" for bound in self.prompt_tokens), "rest")

    def stratum(self, prompt_tokens: int) -> str:
        """That of a prompt of so many tokens."""
        return next((f"<{bound}" for bound in self.prompt_tokens if prompt_tokens < bound), "rest")


class Breaker(Strict):
    """Rolls back at once, without statistics: the candidate's engine crashed so often since the stage began."""

    crashes: Count = 3


class Canary(Strict):
    """A share of real jobs, in steps."""

    unit: Unit = Unit.JOB
    steps: Annotated[tuple[Step, ...], Field(min_length=1, max_length=20)] = _STEPS

    @model_validator(mode="after")
    def _rise(self) -> Self:
        shares = [step.share for step in self.steps]
        if shares != sorted(set(shares)):
            raise wrong_at("steps", "let each step have a larger share than the one before")
        return self


class AB(Strict):
    """Half of the users, or whichever share, and what they say of the answers."""

    unit: Unit = Unit.USER
    share: Share = 0.5
    feedback_margin: Margin = 0.05
    """The candidate's mean score is proven to be at most this much below the champion's; scores lie in 0 to 1."""
    cost: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """What a second of a device is worth, in points of score, each job's difference counting up to 1; 0 judges answers
    alone."""
    minimum_jobs: Count = 200
    """So many units of the candidate that were judged, at least."""
    timeout: Duration = 14 * 86400
    on_timeout: OnTimeout = OnTimeout.HOLD

    @model_validator(mode="after")
    def _stays(self) -> Self:
        if not self.unit.sticky:
            raise wrong_at("unit", "give user or tenant: who judges must meet one version alone")
        return self


class Policy(Strict):
    """A policy. A gate that is null is left out; at least the canary has to be there."""

    alphas: Alphas = Alphas()
    offline: Offline | None = Offline()
    shadow: Shadow | None = Shadow()
    canary: Canary = Canary()
    ab: AB | None = None
    errors: Errors = Errors()
    latency: Latency | None = Latency()
    breaker: Breaker = Breaker()
    started_jobs: StartedJobs = StartedJobs.FINISH
    keep_warm: Duration = 24 * 3600
    """How long the old version stays loaded after a promotion, so that it can be taken back in one step."""

    @property
    def version(self) -> str:
        """Twelve digits of the SHA-256 of the document in its canonical form: any change makes another."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def read_policy(text: str) -> Policy:
    """The policy that a YAML document (JSON is one too) describes.

    Raises `ValidationFailed`, whose `field` is the member at fault by its path, such as `canary.steps.1.share`, and
    `InvalidJson` for a text that cannot be read at all.
    """
    try:
        document = yaml.load(text, Loader=_GivenOnce)  # noqa: S506 - a SafeLoader, which makes plain values alone
    except yaml.YAMLError as error:
        raise InvalidJson(f"the policy is not YAML: {' '.join(str(error).split())}") from None
    try:
        plain = json.dumps({} if document is None else document)
    except TypeError as error:  # a date
        raise InvalidJson(f"the policy holds what JSON cannot: {error}") from None
    try:
        return Policy.model_validate_json(plain)
    except ValidationError as error:
        raise _located(explain_validation(error)) from None


def _located(error: Exception) -> Exception:
    if isinstance(error, ValidationFailed) and error.field is None:
        return ValidationFailed(error.message.replace("the body", "the policy", 1), **error.extra)
    return error


class _GivenOnce(yaml.SafeLoader):
    """YAML lets a key be given twice, and takes the last; and by aliases a few lines can be gigabytes. Not here."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias (*name) is not taken; write out what it stands for")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                line = node.start_mark.line + 1
                raise refuse_field(str(key), f"is given more than once in what begins in line {line}", "give it once")
        return super().construct_mapping(node, deep)
