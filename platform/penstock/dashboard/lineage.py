"""A model's versions: where each comes from, how it was made, what it lost, and where it stands. Changes nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from penstock.compressions.models import Compression
from penstock.registry.models import LANE_ID, Deployment
from penstock.rollouts.models import Rollout
from penstock.workers.services import DeploymentStanding, standings_of


@dataclass(frozen=True, slots=True)
class Quality:
    """What an evaluation found. `ratio` is its bytes over its reference's; `mean_kld` in nats, `same_top` a share."""

    against: str
    ratio: float | None
    mean_kld: float
    same_top: float
    flips: float | None
    positions: int
    job_id: str


@dataclass(frozen=True, slots=True)
class VersionLine:
    """One version. `parent` is the version it was made of, `rollouts` its rollouts, newest first."""

    standing: DeploymentStanding
    parent: str | None
    made_by: str | None
    quality: Quality | None
    rollouts: Sequence[Rollout]

    @property
    def deployment(self) -> Deployment:
        return self.standing.deployment

    @property
    def roles(self) -> Sequence[str]:
        """What it is to its model now, such as champion."""
        return self.standing.routes


def model_names(session: Session) -> list[str]:
    """Every model of which a version was deployed, by name."""
    names = select(Deployment.model_name).where(Deployment.id != LANE_ID).distinct()
    return list(session.scalars(names.order_by(Deployment.model_name)))


def versions_of(session: Session, name: str) -> list[VersionLine]:
    """The model's versions, newest first; empty for a model that there is not."""
    found = select(Deployment).where(Deployment.model_name == name, Deployment.id != LANE_ID)
    deployments = session.scalars(found.order_by(Deployment.created_at.desc(), Deployment.id.desc())).all()
    made, judged = _makings(session, name), _judgements(session, name)
    rollouts = session.scalars(select(Rollout).where(Rollout.model_name == name).order_by(Rollout.id.desc())).all()
    return [
        VersionLine(
            standing,
            *_origin(made.get(version)),
            judged.get(version) or _quality(made.get(version)),
            [rollout for rollout in rollouts if rollout.candidate_id == standing.deployment.id],
        )
        for standing in standings_of(session, deployments)
        for version in (standing.deployment.model_version,)
    ]


def _makings(session: Session, name: str) -> Mapping[str, Compression]:
    """The job that made each version of the model, by version."""
    rows = session.scalars(
        select(Compression)
        .where(Compression.made["name"].astext == name, Compression.published["created"].astext == "true")
        .order_by(Compression.job_id)
    )
    return {row.published["version"]: row for row in rows if row.published is not None}


def _judgements(session: Session, name: str) -> Mapping[str, Quality]:
    """The newest evaluation of each version, by version."""
    rows = session.scalars(
        select(Compression)
        .where(
            Compression.model["name"].astext == name, Compression.against.is_not(None), Compression.made.is_not(None)
        )
        .order_by(Compression.job_id)
    )
    return {row.model["version"]: found for row in rows if (found := _quality(row)) is not None}


def _origin(made: Compression | None) -> tuple[str | None, str | None]:
    return (None, None) if made is None else (made.model["version"], made.job_id)


def _quality(row: Compression | None) -> Quality | None:
    """From what the evaluation told (`penstock_compress.evaluate`); None where none was made."""
    figures: dict[str, Any] | None = row.made.get("figures") if row is not None and row.made is not None else None
    if row is None or figures is None:
        return None
    divergence, flips = figures["divergence"], figures["flips"]
    candidate, against = figures["candidate"], figures["against"]
    return Quality(
        against=(row.against or row.model)["version"],
        ratio=candidate["bytes"] / against["bytes"] if against.get("bytes") else None,
        mean_kld=divergence["mean"]["value"],
        same_top=divergence["same_top"]["value"],
        flips=flips["share"]["value"] if flips else None,
        positions=figures["positions"],
        job_id=row.job_id,
    )
