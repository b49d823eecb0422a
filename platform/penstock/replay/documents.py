"""How replays look from outside, and what they have found."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from penstock.clock import iso
from penstock.replay.models import Mode, Replay, ReplayState


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ReplayFilter(_Document):
    """Which stored jobs."""

    since: datetime | None
    until: datetime | None
    tenant: str | None
    limit: int


class ReplayDocument(_Document):
    """A replay and how far it is. What of `total` is neither done nor lost is still to come, or was deleted."""

    id: str
    object: Literal["replay"]
    status: ReplayState
    mode: Mode
    model: str
    candidate: str = Field(description="The version that is tried")
    reference: str = Field(description="The version whose answers they are")
    filter: ReplayFilter
    total: int = Field(description="How many jobs it is about; rises while it is gathering")
    done: int
    lost: int = Field(description="Jobs that could not be compared")
    created_at: datetime
    finished_at: datetime | None


class ReplayPage(_Document):
    """A page of replays, newest first."""

    object: Literal["list"]
    data: list[ReplayDocument]
    has_more: bool
    next: str | None = Field(description="Give it as `after` to get the next page")


class ScoredFigures(_Document):
    """Of all answers that both versions scored. Divergences are nats a token, at least, by answer."""

    answers: int
    tokens: int
    mean_kld: float
    median_kld: float
    p99_kld: float
    disagreement: float = Field(description="Mean part of an answer's tokens at which the first choices differ")
    alike: float = Field(description="Part of the answers at none of whose tokens they differ")
    mean_rank: float
    logprob_difference: float


class AnsweredSide(_Document):
    """One version's answers. Means are by answer; validity is of those that had to have a form."""

    mean_tokens: float | None
    mean_seconds: float | None
    mean_first_token_seconds: float | None
    device_seconds: float | None
    valid: float | None


class AnsweredFigures(_Document):
    """Of all requests that the tried version answered anew, beside the stored answers."""

    answers: int
    failed: int
    errors: dict[str, int] = Field(description="How many failed, by code")
    exact: float | None = Field(description="Part of the new answers that are the stored ones, to the last token")
    mean_first_difference: float | None = Field(description="Tokens until others differ")
    stored: AnsweredSide
    new: AnsweredSide


class ReplayProblem(_Document):
    """Why jobs could not be compared."""

    problem: str
    jobs: int


class FarJob(_Document):
    """One of the jobs on which the versions are furthest apart."""

    job: str
    mean_kld: float
    disagreement: float


class ReplayReport(_Document):
    """What a replay has found so far; all of it once it is completed."""

    replay: ReplayDocument
    scored: ScoredFigures | None
    answered: AnsweredFigures | None
    problems: list[ReplayProblem]
    furthest: list[FarJob] = Field(description="The ten of the largest mean divergence")


def replay_document(replay: Replay, versions: dict[str, str]) -> dict[str, Any]:
    """As `ReplayDocument`; `versions` are numbers by deployment."""
    return {
        "id": replay.id,
        "object": "replay",
        "status": replay.state,
        "mode": replay.mode,
        "model": replay.model_name,
        "candidate": versions[replay.candidate_id],
        "reference": versions[replay.reference_id],
        "filter": replay.filter,
        "total": replay.total,
        "done": replay.done,
        "lost": replay.lost,
        "created_at": iso(replay.created_at),
        "finished_at": iso(replay.finished_at),
    }
