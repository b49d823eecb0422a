"""How a gate's judgement went, as a chart shows it: points, closer where the gate is young.

A point is kept when something has changed since the last one and a fortieth of the gate's time has passed, at least a
second: 457 points in two weeks, 28 more whenever that time doubles. The judgement that ends a gate always is one.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from penstock.rollouts.models import GatePoint, Rollout
from penstock.rollouts.verdicts import Judgement, Verdict

_LEAST: Final = timedelta(seconds=1)
_PART: Final = 40


def remember(session: Session, rollout: Rollout, judgement: Judgement) -> None:
    """Keep the judgement of the gate where the rollout stands, if it is time for a point."""
    now = session.scalars(select(func.clock_timestamp())).one()
    guards = {reason.name: {"verdict": reason.verdict.value, **reason.figures} for reason in judgement.reasons}
    last = _last(session, rollout)
    if judgement.verdict is Verdict.HOLD and last is not None and not _due(session, last, guards, now):
        return
    session.add(
        GatePoint(
            rollout_id=rollout.id,
            state=rollout.state,
            step=rollout.step,
            at=now,
            verdict=judgement.verdict,
            jobs_needed=judgement.jobs_needed,
            guards=guards,
        )
    )
    session.flush()


def points(session: Session, rollout_id: str) -> Sequence[GatePoint]:
    """All of a rollout's, in the order in which they came."""
    return session.scalars(select(GatePoint).where(GatePoint.rollout_id == rollout_id).order_by(GatePoint.at)).all()


def _last(session: Session, rollout: Rollout) -> GatePoint | None:
    return session.scalars(_of(rollout).order_by(GatePoint.at.desc()).limit(1)).first()


def _due(session: Session, last: GatePoint, guards: dict[str, Any], now: datetime) -> bool:
    first = session.scalars(
        select(func.min(GatePoint.at)).where(
            GatePoint.rollout_id == last.rollout_id, GatePoint.state == last.state, GatePoint.step == last.step
        )
    ).one()
    return last.guards != guards and now - last.at >= max(_LEAST, (now - first) / _PART)


def _of(rollout: Rollout) -> Any:
    return select(GatePoint).where(
        GatePoint.rollout_id == rollout.id, GatePoint.state == rollout.state, GatePoint.step == rollout.step
    )
