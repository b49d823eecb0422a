"""Where a rollout stands, and the moves between: one table.

registered ──▶ offline ──▶ shadow ──▶ canary (step by step) ──▶ ab ──▶ promoted
                  │           │          │                      │         │
                  ▼           ▼          ▼                      ▼         ▼
               rejected    rejected   rolled_back          rolled_back  rolled_back (taken back)

From anywhere before the end: paused, which goes back to where it was; aborted; and promoted, by the alias being moved
by hand. Gates that the policy leaves out are passed over.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from penstock.errors import IllegalTransition
from penstock.rollouts.assignment import Unit
from penstock.rollouts.policy import Policy


class State(StrEnum):
    """Where a rollout stands. `rejected`: it was refused before it served a job. `rolled_back`: after."""

    REGISTERED = "registered"
    OFFLINE = "offline"
    SHADOW = "shadow"
    CANARY = "canary"
    AB = "ab"
    PROMOTED = "promoted"
    PAUSED = "paused"
    REJECTED = "rejected"
    ROLLED_BACK = "rolled_back"
    ABORTED = "aborted"

    @property
    def final(self) -> bool:
        return not TRANSITIONS[self]

    @property
    def gate(self) -> bool:
        """Whether evidence is gathered there and judged."""
        return self in _GATES

    @property
    def serves(self) -> bool:
        """Whether the candidate's answers reach users."""
        return self in (State.CANARY, State.AB, State.PROMOTED)


class Move(StrEnum):
    """What can happen to a rollout: a verdict, or an operator's word. `start` leads to the first gate."""

    START = "start"
    PROMOTE = "promote"
    ROLLBACK = "rollback"
    PAUSE = "pause"
    RESUME = "resume"
    ABORT = "abort"
    ADOPT = "adopt"
    """The alias champion was moved to the candidate by hand: to the end at once, whatever gates are left."""


_GATES: Final = (State.OFFLINE, State.SHADOW, State.CANARY, State.AB)
_STOPS: Final = frozenset({State.PAUSED, State.ABORTED})
_ENDS: Final = {Move.ABORT: State.ABORTED, Move.ADOPT: State.PROMOTED}

TRANSITIONS: Final[dict[State, frozenset[State]]] = {
    State.REGISTERED: frozenset({State.OFFLINE, State.SHADOW, State.CANARY}) | _STOPS,
    State.OFFLINE: frozenset({State.SHADOW, State.CANARY, State.PROMOTED, State.REJECTED}) | _STOPS,
    State.SHADOW: frozenset({State.CANARY, State.PROMOTED, State.REJECTED}) | _STOPS,
    State.CANARY: frozenset({State.CANARY, State.AB, State.PROMOTED, State.ROLLED_BACK}) | _STOPS,
    State.AB: frozenset({State.PROMOTED, State.ROLLED_BACK}) | _STOPS,
    State.PAUSED: frozenset({State.REGISTERED, *_GATES, State.PROMOTED, State.ABORTED}),
    State.PROMOTED: frozenset({State.ROLLED_BACK}),
    State.REJECTED: frozenset(),
    State.ROLLED_BACK: frozenset(),
    State.ABORTED: frozenset(),
}


@dataclass(frozen=True, slots=True)
class Position:
    """A rollout's state; `step` counts the canary's steps from 0; `paused_in` says where a paused one was."""

    state: State
    step: int = 0
    paused_in: State | None = None

    @property
    def title(self) -> str:
        return f"{self.state} step {self.step + 1}" if self.state is State.CANARY else str(self.state)


START: Final = Position(State.REGISTERED)


def course(policy: Policy) -> tuple[Position, ...]:
    """Every position that a rollout under this policy passes through, if nothing stops it."""
    gates = [START]
    gates += [Position(State.OFFLINE)] if policy.offline else []
    gates += [Position(State.SHADOW)] if policy.shadow else []
    gates += [Position(State.CANARY, step) for step in range(len(policy.canary.steps))]
    gates += [Position(State.AB)] if policy.ab else []
    return (*gates, Position(State.PROMOTED))


def move(position: Position, how: Move, policy: Policy) -> Position:
    """Where the move leads. Raises `IllegalTransition` for one that the table does not have."""
    wanted = _wanted(position, how, policy)
    if wanted is None or wanted.state not in TRANSITIONS[position.state]:
        raise IllegalTransition(f"a rollout that is {position.state} takes no {how}")
    return wanted


def share(position: Position, policy: Policy) -> float:
    """The candidate's part of new jobs: none while a rollout is paused, when nobody judges what they show."""
    if position.state is State.CANARY:
        return policy.canary.steps[position.step].share
    if position.state is State.AB and policy.ab is not None:
        return policy.ab.share
    return 1.0 if position.state is State.PROMOTED else 0.0


def touched(position: Position, policy: Policy) -> float:
    """The part of new jobs that a rollout has to do with: the candidate's, or in the shadow those that it scores."""
    if position.state is State.SHADOW and policy.shadow:
        return policy.shadow.sampling
    return share(position, policy) if position.state in (State.CANARY, State.AB) else 0.0


def unit(position: Position, policy: Policy) -> Unit:
    """What is assigned as one there."""
    if position.state is State.AB and policy.ab:
        return policy.ab.unit
    return policy.canary.unit if position.state is State.CANARY else Unit.JOB


def stage(position: Position) -> State:
    """The stage that a rollout is in, also while it is paused."""
    return position.paused_in or position.state


def _wanted(position: Position, how: Move, policy: Policy) -> Position | None:
    if how is Move.PAUSE:
        return replace(position, state=State.PAUSED, paused_in=position.state)
    if how is Move.RESUME:
        return replace(position, state=position.paused_in, paused_in=None) if position.paused_in else None
    if how in _ENDS:
        return Position(_ENDS[how])
    if how is Move.ROLLBACK:
        return Position(State.ROLLED_BACK if position.state.serves else State.REJECTED)
    starts = position == START
    return _next(position, policy) if starts is (how is Move.START) else None


def _next(position: Position, policy: Policy) -> Position | None:
    places = course(policy)
    if position not in places[:-1]:
        return None
    return places[places.index(position) + 1]
