"""The lead: the right to do what one process alone may do. It expires, and whoever slept through that writes nothing.

Every transaction of the leader holds its row under its fence (`hold`), which keeps a successor waiting until it ends.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from penstock.rollouts.models import ControllerLease

ROLLOUTS: Final = "rollouts"


class LeadLost(Exception):
    """The lead has expired, or another process has it."""


@dataclass(frozen=True, slots=True)
class Lead:
    """The right to lead `name`, as long as its fence is this one."""

    name: str
    fence: int


def take(session: Session, name: str, holder: str, seconds: float) -> Lead | None:
    """The lead, for so long, if nobody has it: not even this holder, who renews instead."""
    ends = _in(seconds)
    wanted = insert(ControllerLease).values(name=name, holder=holder, fence=1, expires_at=ends)
    fence = session.scalar(
        wanted.on_conflict_do_update(
            index_elements=[ControllerLease.name],
            set_={"holder": holder, "fence": ControllerLease.fence + 1, "expires_at": ends},
            where=ControllerLease.expires_at <= func.clock_timestamp(),
        ).returning(ControllerLease.fence)
    )
    return None if fence is None else Lead(name, fence)


def renew(session: Session, lead: Lead, seconds: float) -> None:
    """It lasts so long from now on. Raises `LeadLost`."""
    _change(session, lead, _in(seconds))


def release(session: Session, lead: Lead) -> None:
    """Another may take it at once. Raises `LeadLost`."""
    _change(session, lead, func.clock_timestamp())


def hold(session: Session, lead: Lead) -> None:
    """Nobody else leads before this transaction has ended. Raises `LeadLost`."""
    held = select(ControllerLease.name).where(*_own(lead)).with_for_update(read=True)
    if session.scalar(held) is None:
        raise LeadLost(f"the lead of {lead.name} was lost; its fence was {lead.fence}")


def _change(session: Session, lead: Lead, expires_at: ColumnElement[datetime]) -> None:
    changed = update(ControllerLease).where(*_own(lead)).values(expires_at=expires_at).returning(ControllerLease.name)
    if session.scalar(changed) is None:
        raise LeadLost(f"the lead of {lead.name} was lost; its fence was {lead.fence}")


def _own(lead: Lead) -> tuple[ColumnElement[bool], ...]:
    return (
        ControllerLease.name == lead.name,
        ControllerLease.fence == lead.fence,
        ControllerLease.expires_at > func.clock_timestamp(),
    )


def _in(seconds: float) -> ColumnElement[datetime]:
    return func.clock_timestamp() + timedelta(seconds=seconds)
