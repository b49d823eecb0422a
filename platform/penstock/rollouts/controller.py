"""The controller: gathers what the gates of all rollouts have seen, judges it, and does what follows.

One process leads (`penstock.rollouts.lead`); the others wait for its lease to end. Each rollout has a transaction of
its own: what was counted, the judgement and the move are kept together or not at all, so a process that dies at any
point loses nothing and doubles nothing. What fails for one rollout is tried again at the next turn, and holds up no
other. Only the database's clock counts.
"""

import os
import socket
import threading
import time
from dataclasses import replace
from typing import Final

from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from penstock.db import DATABASE_AWAY, Database
from penstock.errors import PenstockError
from penstock.ids import new_id
from penstock.logs import get_logger
from penstock.metrics import RolloutMetrics
from penstock.rollouts import services
from penstock.rollouts.consequences import open_share
from penstock.rollouts.evidence import EVIDENCE, Evidence
from penstock.rollouts.gates import GATES
from penstock.rollouts.lead import ROLLOUTS, Lead, LeadLost, release, renew, take
from penstock.rollouts.models import GateResult, Rollout
from penstock.rollouts.states import State
from penstock.rollouts.stragglers import Left, sweep
from penstock.rollouts.verdicts import Judgement
from penstock.routing.succession import Readiness

LEAD_SECONDS: Final = 10.0
"""How long a leader that died keeps others from leading."""
BUSY_SECONDS: Final = 0.5
"""Between turns while a rollout is under way."""
IDLE_SECONDS: Final = 2.0
_PAUSES: Final = {Left.NOTHING: IDLE_SECONDS, Left.PERHAPS: BUSY_SECONDS, Left.MORE: 0.0}
log = get_logger(__name__)


class Controller:
    """Takes turns while it leads. Each control process runs one; of several, one acts."""

    def __init__(self, database: Database, metrics: RolloutMetrics) -> None:
        self._database, self._metrics = database, metrics
        self._holder = f"{socket.gethostname()}:{os.getpid()}:{new_id('ctl')}"
        self._lead: Lead | None = None

    def run(self, stop: threading.Event) -> None:
        """Take turns until `stop` is set; outages are waited out. The lead is given back at the end."""
        pause = 0.0
        while not stop.wait(pause):
            pause = self.attempt()
        self._step_down()

    def attempt(self) -> float:
        """One turn, come what may; answers with the seconds until the next."""
        try:
            return _PAUSES[self.turn()]
        except LeadLost as error:
            log.warning("rollouts.lead_lost", reason=str(error))
            self._lead = None
        except DATABASE_AWAY as error:
            log.warning("rollouts.turn_interrupted", error=type(error).__name__)
        except Exception:
            log.exception("rollouts.turn_failed")
        return IDLE_SECONDS

    def turn(self) -> Left:
        """Work once at every rollout that is under way, or has ended and left jobs. Raises `LeadLost`."""
        lead = self._led()
        if lead is None:
            self._metrics.show(())
            return Left.NOTHING
        began = time.perf_counter()
        with self._database.transaction() as session:
            under_way = [(rollout.id, rollout.model_name, rollout.state) for rollout in services.under_way(session)]
        self._metrics.show(under_way)
        for rollout_id, _, state in under_way:
            if State(state).gate:
                self._advance(lead, rollout_id)
        left = sweep(self._database, lead)
        self._metrics.turn_seconds.observe(time.perf_counter() - began)
        return max(left, Left.PERHAPS) if under_way else left

    def _led(self) -> Lead | None:
        """The lead, for a while from now on. None while another process has it."""
        with self._database.transaction() as session:
            if self._lead is not None:
                renew(session, self._lead, LEAD_SECONDS)
                return self._lead
            lead = take(session, ROLLOUTS, self._holder, LEAD_SECONDS)
        if lead is not None:
            log.info("rollouts.leading", fence=lead.fence)
        self._lead = lead
        return lead

    def _advance(self, lead: Lead, rollout_id: str) -> None:
        """Gather, judge and follow through, in one transaction; a failure is this rollout's alone."""
        try:
            with self._database.transaction() as session:
                judgement = advance(session, lead, rollout_id)
        except (*DATABASE_AWAY, LeadLost):
            raise
        except (DBAPIError, PenstockError) as error:
            log.warning("rollouts.gate_interrupted", rollout=rollout_id, error=type(error).__name__)
        except Exception:
            log.exception("rollouts.gate_failed", rollout=rollout_id)
        else:
            if judgement is not None:
                self._metrics.judgements.labels(judgement.verdict.value).inc()

    def _step_down(self) -> None:
        if self._lead is None:
            return
        try:
            with self._database.transaction() as session:
                release(session, self._lead)
        except (LeadLost, *DATABASE_AWAY) as error:
            log.info("rollouts.lead_not_given_back", error=type(error).__name__)
        self._lead = None


def advance(session: Session, lead: Lead, rollout_id: str) -> Judgement | None:
    """Judge what a rollout's gate has seen up to now, and do what follows. None where it was not judged.

    A candidate that workers have tried to load, and none can, ends the rollout; while none has it ready it gets no
    jobs, and is promoted nowhere. Raises `LeadLost`.
    """
    rollout = services.locked(session, lead, rollout_id)
    if not rollout.position.state.gate:
        return None
    policy = services.policy_of(rollout)
    candidate = open_share(session, rollout, policy)
    if candidate.readiness is Readiness.FAILED:
        services.give_up(session, rollout, f"version {candidate.version} cannot be loaded: {candidate.error}")
        return None
    before = _before(session, rollout)
    evidence = GATES[rollout.position.state].gather(session, rollout, policy, before)
    evidence = replace(evidence, seconds=_seconds(session, rollout))
    ready = candidate.readiness is Readiness.READY or not services.in_last_gate(rollout)
    return services.conclude(session, lead, rollout.id, rollout.fence, evidence, may_promote=ready)


def _before(session: Session, rollout: Rollout) -> Evidence:
    """The stage's evidence until now. A step of the canary begins with that of the step before it."""
    kept = session.scalars(
        select(GateResult)
        .where(GateResult.rollout_id == rollout.id, GateResult.state == rollout.state, GateResult.step <= rollout.step)
        .order_by(GateResult.step.desc())
        .limit(1)
    ).one_or_none()
    if kept is None:
        return Evidence()
    evidence = EVIDENCE.validate_python(kept.evidence)
    return evidence if kept.step == rollout.step else replace(evidence, seconds=0.0, step_units=0)


def _seconds(session: Session, rollout: Rollout) -> float:
    """Since it entered this gate, or step."""
    return float(session.scalar(select(func.extract("epoch", func.clock_timestamp() - rollout.entered_at))) or 0.0)
