"""The feed's order. An event is written in the transaction of what happened, and gets its position after that commits.

Positions are given out under one lock, to committed rows alone, in the order in which they were written. So a reader
who has had position N has had all that will ever stand before it, which neither a time nor a sequence could promise:
a later number can commit first.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import func, insert, select, text
from sqlalchemy.orm import Session

from penstock.clock import iso
from penstock.errors import ValidationFailed
from penstock.events.models import FeedEvent, FeedHead

NOW: Final = "now"
"""The cursor of who wants only what comes."""

_BATCH: Final = 2000
_ORDER_LOCK: Final = 0x70656E2066656564  # "pen feed", in the database's space of advisory locks
_PLACE: Final = text(
    """
    WITH batch AS MATERIALIZED (
        SELECT id, tenant_id FROM feed_event WHERE position IS NULL ORDER BY id LIMIT :limit
    ), head AS (
        INSERT INTO feed_head (tenant_id, position) SELECT tenant_id, count(*) FROM batch GROUP BY tenant_id
        ON CONFLICT (tenant_id) DO UPDATE SET position = feed_head.position + excluded.position
        RETURNING tenant_id, position
    ), placed AS (
        SELECT id, head.position - row_number() OVER (PARTITION BY tenant_id ORDER BY id DESC) + 1 AS position
        FROM batch JOIN head USING (tenant_id)
    )
    UPDATE feed_event SET position = placed.position FROM placed WHERE feed_event.id = placed.id
    """
)
_SINCE: Final = text(
    """
    SELECT event.tenant_id, event.position, event.type, event.job_id, event.event_number, event.data, event.created_at
    FROM unnest(CAST(:tenants AS text[]), CAST(:positions AS bigint[])) AS reader (tenant_id, position)
    CROSS JOIN LATERAL (
        SELECT * FROM feed_event
        WHERE feed_event.tenant_id = reader.tenant_id AND feed_event.position > reader.position
        ORDER BY feed_event.position LIMIT :limit
    ) AS event
    ORDER BY event.tenant_id, event.position
    """
)


@dataclass(frozen=True, slots=True)
class FeedItem:
    """One event at its place in the tenant's order."""

    tenant_id: str
    position: int
    type: str
    job_id: str | None
    event_number: int | None
    data: dict[str, Any]
    created_at: datetime

    @property
    def document(self) -> dict[str, Any]:
        """As `FeedEventDocument`."""
        return {
            "id": str(self.position),
            "object": "event",
            "type": self.type,
            "job_id": self.job_id,
            "event_number": self.event_number,
            "data": self.data,
            "created_at": iso(self.created_at),
        }


def publish(session: Session, *, tenant_id: str, event_type: str, data: dict[str, Any]) -> None:
    """Write an event that is no job's. The jobs' own come here by themselves."""
    session.execute(insert(FeedEvent), {"tenant_id": tenant_id, "type": event_type, "data": data})


def place_committed(session: Session) -> int:
    """Give committed events their positions; returns how many got one, 0 when another transaction is at it.

    The caller commits soon: until then no event of anybody gets a position.
    """
    # A statement of its own, so that the next one sees all that the lock's last holder committed.
    if not session.scalar(select(func.pg_try_advisory_xact_lock(_ORDER_LOCK))):
        return 0
    placed: Any = session.execute(_PLACE, {"limit": _BATCH})
    return int(placed.rowcount)


def hold_order(session: Session) -> None:
    """Keep events from getting their positions until the transaction ends, which is to be soon."""
    session.execute(select(func.pg_advisory_xact_lock(_ORDER_LOCK)))


def head_of(session: Session, tenant_id: str) -> int:
    """The last position of the tenant's feed; 0 while it is empty."""
    return session.scalar(select(FeedHead.position).where(FeedHead.tenant_id == tenant_id)) or 0


def cursor_of(session: Session, tenant_id: str, after: str | None) -> int:
    """The position that a cursor names: 0, the beginning, without one. Raises `ValidationFailed` when it is none."""
    if after is None:
        return 0
    head = head_of(session, tenant_id)
    if after == NOW:
        return head
    if not (after.isascii() and after.isdigit() and len(after) < 19 and int(after) <= head):
        raise ValidationFailed(
            f"{after[:40]!r} is the id of no event so far; the last one is {head}. Give an event's id, or {NOW}",
            field="after",
        )
    return int(after)


def items_since(session: Session, positions: Mapping[str, int], limit: int) -> list[FeedItem]:
    """What stands after each tenant's position, at most `limit` of each tenant, in one query."""
    rows = session.execute(_SINCE, {"tenants": list(positions), "positions": list(positions.values()), "limit": limit})
    return [FeedItem(*row) for row in rows]
