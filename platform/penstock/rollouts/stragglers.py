"""Jobs that come to a candidate after its rollout has ended: their submits had chosen it just before.

Looked for until every transaction that could have chosen it is over by far.
"""

from datetime import timedelta
from typing import Final

from sqlalchemy import func, select

from penstock.db import Database
from penstock.logs import get_logger
from penstock.registry.models import RoutingPolicy
from penstock.rollouts import services
from penstock.rollouts.consequences import ENDS, send_back
from penstock.rollouts.lead import Lead
from penstock.rollouts.models import Rollout

SWEPT_SECONDS: Final = 120
"""A statement takes at most 30 s, a transaction may be idle for 5 s between two (`penstock.db`)."""
log = get_logger(__name__)


def sweep(database: Database, lead: Lead) -> bool:
    """Send what waits for candidates of rollouts that ended lately to the champions; whether there are such.

    Raises `LeadLost`.
    """
    ended = select(Rollout.id).where(
        Rollout.state.in_(ENDS), Rollout.entered_at > func.clock_timestamp() - timedelta(seconds=SWEPT_SECONDS)
    )
    with database.transaction() as session:
        ids = session.scalars(ended.order_by(Rollout.id)).all()
    for rollout_id in ids:
        with database.transaction() as session:
            rollout = services.locked(session, lead, rollout_id)
            route = session.get_one(RoutingPolicy, rollout.model_name, with_for_update={"key_share": True})
            found = send_back(session, rollout, route, services.policy_of(rollout))
        if found.count:
            log.info("rollouts.stragglers_rerouted", rollout=rollout_id, jobs=found.count)
    return bool(ids)
