"""Jobs that come to a candidate after its rollout has ended: their submits had chosen it just before.

Looked for until every transaction that could have chosen it is over by far.
"""

import time
from collections.abc import Sequence
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
PAUSE_SECONDS: Final = 2.0
"""Between sweeps, of which few find anything."""
log = get_logger(__name__)


class Sweeper:
    """Sends what waits for candidates of rollouts that ended lately to the champions."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._rests_until = 0.0

    def sweep(self, lead: Lead) -> bool:
        """Look at each of them, unless that was just done in vain; whether there are such. Raises `LeadLost`."""
        ids = self._ended()
        if not ids or time.monotonic() < self._rests_until:
            return bool(ids)
        moved = [self._send_back(lead, rollout_id) for rollout_id in ids]
        self._rests_until = 0.0 if any(moved) else time.monotonic() + PAUSE_SECONDS
        return True

    def _ended(self) -> Sequence[str]:
        since = func.clock_timestamp() - timedelta(seconds=SWEPT_SECONDS)
        ended = select(Rollout.id).where(Rollout.state.in_(ENDS), Rollout.entered_at > since)
        with self._database.transaction() as session:
            return session.scalars(ended.order_by(Rollout.id)).all()

    def _send_back(self, lead: Lead, rollout_id: str) -> int:
        with self._database.transaction() as session:
            rollout = services.locked(session, lead, rollout_id)
            route = session.get_one(RoutingPolicy, rollout.model_name, with_for_update={"key_share": True})
            found = send_back(session, rollout, route, services.policy_of(rollout))
        if found.count:
            log.info("rollouts.stragglers_rerouted", rollout=rollout_id, jobs=found.count)
        return found.count
