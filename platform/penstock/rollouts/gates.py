"""Which module gathers a gate's evidence."""

from collections.abc import Mapping
from typing import Final, Protocol

from sqlalchemy.orm import Session

from penstock.rollouts import folding, offline, shadow
from penstock.rollouts.evidence import Evidence
from penstock.rollouts.models import Rollout
from penstock.rollouts.policy import Policy
from penstock.rollouts.states import State


class Gate(Protocol):
    """A stage's evidence, from its entry to its end; the steps of a canary are one stage, and a pause is no end."""

    def begin(self, session: Session, rollout: Rollout, policy: Policy, /) -> None:
        """The stage is entered, in the transaction of that move."""

    def gather(self, session: Session, rollout: Rollout, policy: Policy, before: Evidence, /) -> Evidence:
        """The whole evidence of the stage up to now, given what it was; notes what it has counted."""

    def end(self, session: Session, rollout: Rollout, policy: Policy, /) -> None:
        """The stage is left, however: what it has under way is cancelled."""


GATES: Final[Mapping[State, Gate]] = {
    State.OFFLINE: offline,
    State.SHADOW: shadow,
    State.CANARY: folding,
    State.AB: folding,
}
