"""Dead letters in bulk: all of a group run again, or are put away, by the machinery of bulk operations."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from penstock.auth.audit import Actor, ActorKind
from penstock.batches.workshop import Workshop
from penstock.bulk.models import BulkOperation
from penstock.bulk.states import BulkAction
from penstock.bulk.work import Work, replay
from penstock.dead_letters import services as letters
from penstock.dead_letters.models import DeadLetter
from penstock.dead_letters.services import LetterFilter


class _Letters:
    """What both have in common: open letters that were there when the operation began."""

    def gather(self, session: Session, operation: BulkOperation, limit: int) -> Sequence[str]:
        wanted = LetterFilter(**operation.filter, created_before=operation.created_at)
        query = select(DeadLetter.id).where(*wanted.conditions())
        if operation.gathered_to is not None:
            query = query.where(DeadLetter.id < operation.gathered_to)
        return session.scalars(query.order_by(DeadLetter.id.desc()).limit(limit)).all()

    def reach(self, _session: Session, _operation: BulkOperation, targets: Sequence[str]) -> Sequence[str]:
        return targets


class ReplayLetters(_Letters):
    """Submits their jobs' requests again."""

    at_once = 1  # they are of many tenants, whose budgets and counters one transaction would lock in no order

    def act(self, workshop: Workshop, session: Session, operation: BulkOperation, target: str) -> str | None:
        submit = partial(replay, workshop, session)
        return letters.replay(session, target, actor_of(operation), submit).replay_job_id


class DiscardLetters(_Letters):
    """Puts them away."""

    at_once = 50

    def act(self, _workshop: Workshop, session: Session, operation: BulkOperation, target: str) -> str | None:
        letters.discard(session, target, actor_of(operation))
        return None


LETTER_WORKS: Final[Mapping[BulkAction, Work]] = {
    BulkAction.REPLAY_DEAD_LETTERS: ReplayLetters(),
    BulkAction.DISCARD_DEAD_LETTERS: DiscardLetters(),
}


def actor_of(operation: BulkOperation) -> Actor:
    """Who began the operation, and so makes each of its changes."""
    kept = operation.actor
    return Actor(ActorKind(kept["kind"]), kept["id"], kept["name"], kept["address"], scopes=())
