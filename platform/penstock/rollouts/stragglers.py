"""Jobs that still wait for the candidate of a rollout that has ended: beyond the batch that its verdict moved, or from
submits that had chosen it just before.

Moved batch by batch, each in a transaction of its own, until none is left and every transaction that could have chosen
the candidate is over by far. Nobody can claim them meanwhile (`penstock.jobs.leaving`).
"""

from collections.abc import Sequence
from datetime import timedelta
from enum import IntEnum
from typing import Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from penstock.db import Database
from penstock.logs import get_logger
from penstock.registry.models import RoutingPolicy
from penstock.rollouts import services
from penstock.rollouts.consequences import way_back
from penstock.rollouts.lead import Lead
from penstock.rollouts.models import Rollout
from penstock.rollouts.rerouting import reroute, some_left

SWEPT_SECONDS: Final = 120
"""A statement takes at most 30 s, a transaction may be idle for 5 s between two (`penstock.db`)."""
log = get_logger(__name__)


class Left(IntEnum):
    """What there is to do after a sweep: nothing, to look again now and then, or to go on at once."""

    NOTHING = 0
    PERHAPS = 1
    MORE = 2


def sweep(database: Database, lead: Lead) -> Left:
    """Move a batch of each rollout that has jobs at its candidate. Raises `LeadLost`."""
    left = Left.NOTHING
    for rollout_id in _unsettled(database):
        left = max(left, _send_back(database, lead, rollout_id))
    return left


def _unsettled(database: Database) -> Sequence[str]:
    with database.transaction() as session:
        return session.scalars(select(Rollout.id).where(Rollout.clearing).order_by(Rollout.id)).all()


def _send_back(database: Database, lead: Lead, rollout_id: str) -> Left:
    with database.transaction() as session:
        rollout = services.locked(session, lead, rollout_id)
        route = session.get_one(RoutingPolicy, rollout.model_name, with_for_update={"key_share": True})
        way = way_back(session, rollout, route, services.policy_of(rollout))
        moved = reroute(session, way).count if way else 0
        if not moved and _is_old(session, rollout) and not (way and some_left(session, way)):
            rollout.clearing = False
            return Left.NOTHING
    if moved:
        log.info("rollouts.stragglers_rerouted", rollout=rollout_id, jobs=moved)
    return Left.MORE if moved else Left.PERHAPS


def _is_old(session: Session, rollout: Rollout) -> bool:
    """Whether no submit can come any more that chose its candidate."""
    since = func.clock_timestamp() - timedelta(seconds=SWEPT_SECONDS)
    return bool(session.scalar(select(rollout.entered_at < since)))
