"""Which job is claimed next: class, then the tenant with the lowest counter, then priority, deadline, age.

Within a bucket of age, a job whose prompt begins as one that the worker served lately goes first. Nothing here writes:
a claim reads the counters without locking them, so no tenant's row stands between two claimers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.orm import Session

from penstock.fairness.lanes import IN_LANE, TURNS, WAITING

AGE_BUCKET: Final = timedelta(seconds=10)
"""Jobs that were queued within the same one count as equally old, so that those may go first that begin alike."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_ALIVE: Final = "(job.deadline IS NULL OR job.deadline > now())"

NEXT: Final = f"""
WITH RECURSIVE {TURNS}
SELECT head.*
FROM turn CROSS JOIN LATERAL (
    SELECT id, job_class, tenant_id, priority, deadline, queued_at, prefix FROM job
    WHERE {WAITING} AND {_ALIVE} AND job.job_class = turn.job_class AND job.tenant_id = turn.tenant_id
    ORDER BY {IN_LANE} LIMIT 1 FOR UPDATE SKIP LOCKED
) AS head
LIMIT 1"""  # noqa: S608  # made of constants alone
"""The job to claim, locked. Lanes whose jobs others are claiming are passed over."""

_ALIKE: Final = f"""
SELECT cached.id
FROM unnest(CAST(:prefixes AS bigint[])) WITH ORDINALITY AS recent (prefix, nth) CROSS JOIN LATERAL (
    SELECT id FROM job
    WHERE {WAITING} AND job.tenant_id = :tenant_id AND job.job_class = :job_class AND job.prefix = recent.prefix
      AND job.priority = :priority AND job.deadline {{deadline}} AND job.queued_at < :bucket_end
    ORDER BY queued_at, id LIMIT 1 FOR UPDATE SKIP LOCKED
) AS cached
LIMIT 1"""  # noqa: S608  # made of constants alone
_ALIKE_WITH_DEADLINE: Final = text(_ALIKE.format(deadline="= :deadline"))
_ALIKE_WITHOUT: Final = text(_ALIKE.format(deadline="IS NULL"))


@dataclass(frozen=True, slots=True)
class _Head:
    """The first job of the lane whose turn it is."""

    id: str
    job_class: int
    tenant_id: str
    priority: int
    deadline: datetime | None
    queued_at: datetime
    prefix: int | None

    @property
    def bucket_end(self) -> datetime:
        return self.queued_at + AGE_BUCKET - (self.queued_at - _EPOCH) % AGE_BUCKET


def next_job(session: Session, deployment_id: str, recent_prefixes: Sequence[int] = ()) -> str | None:
    """The id of the job whose turn it is, locked until the transaction ends; None when nothing may be claimed.

    `recent_prefixes` are fingerprints of prompts that the claimer served last, the newest first.
    """
    row = session.execute(text(NEXT), {"deployment_id": deployment_id}).one_or_none()
    if row is None:
        return None
    head = _Head(**row._mapping)
    if not recent_prefixes or head.prefix in recent_prefixes:
        return head.id
    return _alike(session, deployment_id, head, recent_prefixes) or head.id


def _alike(session: Session, deployment_id: str, head: _Head, recent_prefixes: Sequence[int]) -> str | None:
    """Of the jobs that stand level with `head`, the oldest of those that begin as the newest of `recent_prefixes`."""
    given: dict[str, Any] = {
        "deployment_id": deployment_id,
        "prefixes": list(recent_prefixes),
        "tenant_id": head.tenant_id,
        "job_class": head.job_class,
        "priority": head.priority,
        "deadline": head.deadline,
        "bucket_end": head.bucket_end,
    }
    found: str | None = session.scalar(_ALIKE_WITHOUT if head.deadline is None else _ALIKE_WITH_DEADLINE, given)
    return found
