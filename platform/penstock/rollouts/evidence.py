"""What a gate has seen so far. Frozen, made of counts alone, and the same after a way through JSON."""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from pydantic import TypeAdapter

from penstock.rollouts.assignment import Arm
from penstock.rollouts.free_running import FreeRun
from penstock.rollouts.statistics import Sample, Tally
from penstock.rollouts.worth import Trades


@dataclass(frozen=True, slots=True)
class Comparison:
    """How far a version is from another on the held-out set; what was not measured is none. Units as in `Limits`."""

    mean_kld: float | None = None
    same_top: float | None = None
    perplexity_increase: float | None = None
    flips: float | None = None


@dataclass(frozen=True, slots=True)
class ModelEvidence:
    """One version by itself, as the evaluation had it. What was not measured is none."""

    version: str
    digest: str
    """SHA-256 of the manifest of its files, each of which was hashed before it was read."""
    held_bytes: int
    """Of its weights in memory."""
    tokens_per_second: float | None = None
    perplexity: float | None = None
    accuracy: float | None = None
    """Part of the questions that it answers right."""


@dataclass(frozen=True, slots=True)
class OfflineFigures:
    """The candidate against its reference, and the reference against itself: the noise floor."""

    bits: float
    """Of the candidate's weights."""
    tokens: int
    """How many were compared."""
    candidate: Comparison
    noise: Comparison = field(default_factory=Comparison)
    answers: int | None = None
    """How many questions had an answer that is right; 0: no flips could be seen."""
    ratios: dict[str, float] = field(default_factory=dict)
    """The candidate's over the reference's: `memory` (bytes that weights hold), `speed` (tokens a second)."""
    models: dict[str, ModelEvidence] = field(default_factory=dict)
    """`candidate` and `reference`."""
    job_id: str | None = None
    """The evaluation's."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """A stage's evidence; the steps of a canary are one stage, only `seconds` and `step_units` begin anew with each.

    A unit is a job, or with sticky assignment a user or tenant, who is counted once: with the first job in `units` and
    `pairs`, the first failure in `failures`, the first slow job in `slow`.
    """

    seconds: float = 0.0
    """Since the stage, or step, began."""
    step_units: int = 0
    """Of the candidate, since then."""
    crashes: int = 0
    """Of the candidate's engine, each while it ran one job alone."""
    offline: OfflineFigures | None = None
    trouble: str | None = None
    """Why there are none, where more than time is missing."""
    scored: dict[str, Sample] = field(default_factory=dict)
    """Shadow, by job: `mean_kld`, `disagreement`, from 0 to 1."""
    lost: int = 0
    """Shadow: sampled jobs that could not be scored."""
    free: FreeRun = field(default_factory=FreeRun)
    """Shadow: sampled jobs that the candidate answered, too."""
    units: Tally = field(default_factory=Tally)
    failures: Tally = field(default_factory=Tally)
    """Those that a model can cause."""
    slow: dict[str, Tally] = field(default_factory=dict)
    """Units slower than the champion's frozen quantile, by stratum."""
    pairs: dict[str, Sample] = field(default_factory=dict)
    """Candidate less champion, of `errors` and `slow` (1 if it is so, else 0); champion less candidate of `feedback`
    (scores): above 0 the candidate is worse. See `paired`."""
    waiting: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Values of the candidate's units that wait for a partner, by the pairs' names."""
    trades: Trades = ()
    """The pairs of `feedback` again, with the seconds of a device that their jobs took."""
    judged: Tally = field(default_factory=Tally)
    """Units that sent feedback."""

    def to_json(self) -> str:
        return EVIDENCE.dump_json(self).decode()

    @staticmethod
    def from_json(text: str) -> "Evidence":
        """Raises pydantic's `ValidationError` for what `to_json` did not write."""
        return EVIDENCE.validate_json(text)


EVIDENCE: Final = TypeAdapter(Evidence)


@dataclass(frozen=True, slots=True)
class Paired:
    """Differences of the candidate's units that found a partner, and those that wait for one."""

    differences: tuple[float, ...]
    waiting: tuple[float, ...]


def paired(waiting: Sequence[float], came: Iterable[tuple[Arm, float]]) -> Paired:
    """Each value of the candidate less the next one of the champion's that is free, in the order in which they came.

    `waiting` are values of the candidate that came before. Partners are near each other in time, so that a drift which
    both have cancels out; a value of the champion's that nobody waits for is passed over.
    """
    queue, differences = deque(waiting), []
    for arm, value in came:
        if arm is Arm.CANDIDATE:
            queue.append(value)
        elif queue:
            differences.append(queue.popleft() - value)
    return Paired(tuple(differences), tuple(queue))
