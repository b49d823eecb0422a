"""Which job is claimed next: class, then the tenant with the lowest counter, then priority, deadline, age.

Within a bucket of age, a job whose prompt begins as one that the worker served lately goes first. Nothing here writes:
a claim reads the counters without locking them, so no tenant's row stands between two claimers.

Several jobs at once are chosen as that many claims would choose them, one after the other (`fairness.draft`).
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.orm import Session

from penstock.fairness.draft import Draft, Lane, Level, Waiting, bucket_end
from penstock.fairness.lanes import IN_LANE, PLEDGE, TURNS, WAITING
from penstock.jobs.states import JobClass

_ALIVE: Final = "(job.deadline IS NULL OR job.deadline > now())"

NEXT: Final = f"""
WITH RECURSIVE {TURNS}
SELECT head.*
FROM turn CROSS JOIN LATERAL (
    SELECT id, job_class, tenant_id, priority, deadline, queued_at, prefix FROM job
    WHERE {WAITING} AND {_ALIVE} AND job.job_class = turn.job_class AND job.tenant_id = turn.tenant_id
    ORDER BY {IN_LANE} LIMIT 1 FOR UPDATE SKIP LOCKED
) AS head
WHERE turn.job_class <= :last_class
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


_LANES: Final = text(
    f"""
    WITH RECURSIVE {TURNS}, first AS (SELECT * FROM turn WHERE job_class <= :last_class LIMIT :most),
    depth AS (SELECT :most / greatest(count(*), 1) + 4 AS jobs FROM first)
    SELECT first.job_class, first.tenant_id, first.charged, first.pledged, first.weight, depth.jobs AS depth,
           job.id, job.priority, job.deadline, job.queued_at, job.prefix, job.pledge
    FROM depth CROSS JOIN first CROSS JOIN LATERAL (
        SELECT id, priority, deadline, queued_at, prefix, {PLEDGE} AS pledge FROM job
        WHERE {WAITING} AND {_ALIVE} AND job.job_class = first.job_class AND job.tenant_id = first.tenant_id
        ORDER BY {IN_LANE} LIMIT depth.jobs
    ) AS job
    ORDER BY first.job_class, first.tenant_id, {IN_LANE}
    """  # noqa: S608  # made of constants alone
)
"""The first jobs of the first lanes: as many lanes as jobs are wanted, the fewer jobs of each the more lanes."""

_LEVEL: Final = f"""
SELECT alike.* FROM unnest(CAST(:prefixes AS bigint[])) AS recent (prefix) CROSS JOIN LATERAL (
    SELECT id, priority, deadline, queued_at, prefix, {PLEDGE} AS pledge FROM job
    WHERE {WAITING} AND job.tenant_id = :tenant_id AND job.job_class = :job_class AND job.prefix = recent.prefix
      AND job.priority = :priority AND job.deadline {{deadline}} AND job.queued_at < :bucket_end
    ORDER BY queued_at, id LIMIT :most
) AS alike"""  # noqa: S608  # made of constants alone
_LEVEL_WITH_DEADLINE: Final = text(_LEVEL.format(deadline="= :deadline"))
_LEVEL_WITHOUT: Final = text(_LEVEL.format(deadline="IS NULL"))

_LOCK: Final = text(
    """
    SELECT id FROM job WHERE id = ANY(CAST(:ids AS text[])) AND state = 'queued' AND NOT held
    ORDER BY id FOR UPDATE SKIP LOCKED
    """
)


def next_jobs(
    session: Session,
    deployment_id: str,
    recent_prefixes: Sequence[int],
    most: int,
    last_class: JobClass = JobClass.SHADOW,
) -> list[str]:
    """The ids of up to `most` jobs whose turn it is, in the order of their turns, locked until the transaction ends.

    They may be fewer although more wait: only an empty answer says that nothing may be claimed, of the classes up to
    `last_class`.
    """
    if most > 1:
        wanted = _draft(session, deployment_id, recent_prefixes, most, last_class)
        locked = set(session.scalars(_LOCK, {"ids": wanted})) if wanted else set()
        if locked:
            return [job_id for job_id in wanted if job_id in locked]
    one = next_job(session, deployment_id, recent_prefixes, last_class)
    return [one] if one is not None else []


def _draft(
    session: Session, deployment_id: str, recent_prefixes: Sequence[int], most: int, last_class: JobClass
) -> list[str]:
    lanes: dict[tuple[int, str], Lane] = {}
    wanted = {"deployment_id": deployment_id, "most": most, "last_class": last_class.value}
    for row in session.execute(_LANES, wanted):
        key = (row.job_class, row.tenant_id)
        if key not in lanes:
            lanes[key] = Lane(*key, row.charged, row.pledged, row.weight, row.depth)
        lanes[key].jobs.append(Waiting(*row[-6:]))

    def alike(level: Level, prefixes: Collection[int]) -> list[Waiting]:
        statement = _LEVEL_WITHOUT if level.deadline is None else _LEVEL_WITH_DEADLINE
        given = asdict(level) | {"deployment_id": deployment_id, "prefixes": list(prefixes), "most": most}
        return [Waiting(*row) for row in session.execute(statement, given)]

    return Draft(list(lanes.values()), recent_prefixes, alike).take(most)


def next_job(
    session: Session,
    deployment_id: str,
    recent_prefixes: Sequence[int] = (),
    last_class: JobClass = JobClass.SHADOW,
) -> str | None:
    """The id of the job whose turn it is, locked until the transaction ends; None when nothing may be claimed.

    `recent_prefixes` are fingerprints of prompts that the claimer served last, the newest first.
    """
    given = {"deployment_id": deployment_id, "last_class": last_class.value}
    row = session.execute(text(NEXT), given).one_or_none()
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
        "bucket_end": bucket_end(head.queued_at),
    }
    found: str | None = session.scalar(_ALIKE_WITHOUT if head.deadline is None else _ALIKE_WITH_DEADLINE, given)
    return found
