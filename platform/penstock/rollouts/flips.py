"""Where versions part: the answers that a shadow or a replay found furthest apart, with what each version would say.

These documents hold text of jobs. They are for those alone who may read every tenant's, and reading them is recorded by
whoever shows them. Takes a session, never commits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from penstock.clock import iso
from penstock.jobs.models import Job
from penstock.registry.models import Deployment
from penstock.registry.tokenizer import ModelTokenizer
from penstock.replay.internal import answer_of
from penstock.replay.models import Comparison, ComparisonState
from penstock.rollouts.scoring import SCORED, Likely, Parting, Scored

_BEFORE, _AFTER = 40, 16
"""Tokens of the answer that are shown around a position."""
_PROMPT_CHARACTERS: Final = 400


class Order(StrEnum):
    """Which answers come first: those of the largest mean divergence, or of most differing choices, or the latest."""

    DIVERGENCE = "divergence"
    DISAGREEMENT = "disagreement"
    NEWEST = "newest"


@dataclass(frozen=True, slots=True)
class Flip:
    """A compared answer, with its job and the version that gave it."""

    comparison: Comparison
    source: Job
    reference: Deployment

    @property
    def scored(self) -> Scored:
        return SCORED.validate_python(self.comparison.scored, strict=False)


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid")


class LikelyDocument(_Document):
    """A token that a version finds likely."""

    token_id: int
    text: str
    probability: float


class PartingDocument(_Document):
    """A position of the answer, and the likeliest tokens of both versions there, the likeliest first."""

    position: int = Field(description="Of the answer's tokens, from 0")
    before: str = Field(description="The answer up to there, at most 40 tokens of it")
    token: LikelyDocument = Field(description="What the answer has there; how likely the candidate finds it")
    after: str
    kld: float = Field(description="Nats, at least")
    reference: list[LikelyDocument]
    candidate: list[LikelyDocument]


class FlipDocument(_Document):
    """One answer on which the versions differ, and where."""

    job: str
    tenant_id: str
    created_at: str
    tokens: int
    mean_kld: float
    largest_kld: float
    disagreement: float
    mean_rank: float
    logprob_difference: float
    prompt_end: str = Field(description="The last 400 characters that were asked")
    parting: PartingDocument | None = Field(description="Where the first choices differ for the first time")
    worst: PartingDocument = Field(description="Where the divergence is largest")


def flips_of(rollout_id: str) -> ColumnElement[bool]:
    """A rollout's."""
    return Comparison.rollout_id == rollout_id


def find_flips(session: Session, which: ColumnElement[bool], order: Order, limit: int) -> list[Flip]:
    """The first so many answers in that order; of equal ones the later."""
    columns = {Order.DIVERGENCE: [Comparison.mean_kld.desc()], Order.DISAGREEMENT: [Comparison.disagreement.desc()]}
    found = session.execute(
        select(Comparison, Job, Deployment)
        .join(Job, Job.id == Comparison.source_id)
        .join(Deployment, Deployment.id == Job.deployment_id)
        .where(which, Comparison.state == ComparisonState.DONE, Comparison.scored.is_not(None))
        .order_by(*columns.get(order, []), Comparison.id.desc())
        .limit(limit)
    )
    return [Flip(*row) for row in found]


def flip_document(flip: Flip, tokenizer_of: Callable[[Deployment], ModelTokenizer]) -> dict[str, Any]:
    """As `FlipDocument`. Outside of a transaction: a tokenizer may have to be loaded. Raises as it does."""
    scored, source = flip.scored, flip.source
    reader = _Reader(tokenizer_of(flip.reference), answer_of(source))
    names = ("tokens", "mean_kld", "largest_kld", "disagreement", "mean_rank", "logprob_difference")
    return {
        "job": source.id,
        "tenant_id": source.tenant_id,
        "created_at": iso(source.created_at),
        **{name: getattr(scored, name) for name in names},
        "prompt_end": _asked(source)[-_PROMPT_CHARACTERS:],
        "parting": reader.parting(scored.parting) if scored.parting is not None else None,
        "worst": reader.parting(scored.worst),
    }


class _Reader:
    """Puts positions of one answer into text."""

    def __init__(self, tokenizer: ModelTokenizer, answer: list[int]) -> None:
        self._tokenizer, self._answer = tokenizer, answer

    def parting(self, parting: Parting) -> dict[str, Any]:
        at = parting.position
        return {
            "position": at,
            "before": self._tokenizer.decode(self._answer[max(at - _BEFORE, 0) : at]),
            "token": self._likely(Likely(parting.token_id, parting.probability)),
            "after": self._tokenizer.decode(self._answer[at + 1 : at + 1 + _AFTER]),
            "kld": parting.kld,
            "reference": [self._likely(each) for each in parting.reference],
            "candidate": [self._likely(each) for each in parting.candidate],
        }

    def _likely(self, likely: Likely) -> dict[str, Any]:
        return {
            "token_id": likely.token_id,
            "text": self._tokenizer.spelled(likely.token_id),
            "probability": likely.probability,
        }


def _asked(job: Job) -> str:
    """What the job asked, as far as it is text."""
    if messages := job.input.get("messages"):
        return str(messages[-1]["content"])
    return str(job.input.get("prompt", ""))
