"""Where a waiting job stands: how many would be claimed before it, were claims made now, one after the other.

Each of them would pledge its prompt to its tenant's counter, as claims do; so the tenants' jobs are merged here as they
would be taken. What is charged meanwhile, who comes meanwhile, and which prompts a worker has cached, may change it.
"""

from dataclasses import dataclass
from typing import Final

from sqlalchemy import text
from sqlalchemy.orm import Session

from penstock.fairness.lanes import IN_LANE, PLEDGE, TURNS, WAITING, level
from penstock.jobs.models import Job

MOST_COUNTED: Final = 500
_MOST_NAMED: Final = 5
_DEPTHS: Final = (50, MOST_COUNTED + 1)  # of lanes, one after the other: with many tenants the first is often enough

# The first jobs of the lane `turn`, each with its number in it and what those before it would pledge.
_LANE: Final = f"""
    SELECT id, row_number() OVER lane AS nth, pledge, sum(pledge) OVER lane - pledge AS before
    FROM (
        SELECT id, {PLEDGE} AS pledge, priority, deadline, queued_at FROM job
        WHERE {WAITING} AND job.job_class = turn.job_class AND job.tenant_id = turn.tenant_id
          AND (deadline IS NULL OR deadline > now() OR id = :job_id)
        ORDER BY {IN_LANE} LIMIT :depth
    ) AS first
    WINDOW lane AS (ORDER BY {IN_LANE} ROWS UNBOUNDED PRECEDING)"""  # noqa: S608  # made of constants alone

_PLACE: Final = text(
    f"""
    WITH RECURSIVE {TURNS}, earlier AS (
        SELECT turn.tenant_id, turn.job_class, job.id, job.nth, job.pledge
        FROM turn CROSS JOIN LATERAL ({_LANE}) AS job
        WHERE turn.job_class < :job_class
        LIMIT :most + 1
    ), start AS (
        SELECT turn.job_class, tenant_id, weight, charged, pledged + coalesce(
            (SELECT sum(pledge) FROM earlier WHERE earlier.tenant_id = turn.tenant_id), 0
        ) AS pledged
        FROM turn WHERE turn.job_class = :job_class
    ), mine AS (
        SELECT {level("turn.charged", "turn.pledged + job.before", "turn.weight")} AS level, job.nth
        FROM start AS turn CROSS JOIN LATERAL ({_LANE}) AS job
        WHERE turn.tenant_id = :tenant_id AND job.id = :job_id
    ), ahead AS (
        SELECT id, job_class, nth, tenant_id = :tenant_id AS own FROM earlier
        UNION ALL
        SELECT job.id, turn.job_class, job.nth, turn.tenant_id = :tenant_id
        FROM mine JOIN start AS turn ON {level("turn.charged", "turn.pledged", "turn.weight")} <= mine.level
        CROSS JOIN LATERAL ({_LANE}) AS job
        WHERE ({level("turn.charged", "turn.pledged + job.before", "turn.weight")}, turn.tenant_id, job.nth)
            < (mine.level, :tenant_id, mine.nth)
        LIMIT :most + 1
    )
    SELECT count(*) FILTER (WHERE own) AS own, count(*) FILTER (WHERE NOT own) AS others,
           (array_agg(id ORDER BY job_class, nth) FILTER (WHERE own))[1:{_MOST_NAMED}] AS own_jobs,
           coalesce(max(nth), 0) AS deepest, EXISTS (SELECT FROM mine) AS found
    FROM ahead
    """  # noqa: S608  # made of constants alone
)


@dataclass(frozen=True, slots=True)
class Place:
    """How many jobs go before one: the tenant's own, of which the first few are named, and others'.

    With `more` they are more than `MOST_COUNTED`, and were not counted further.
    """

    own: int
    others: int
    own_jobs: tuple[str, ...]
    more: bool = False

    @property
    def ahead(self) -> int:
        return self.own + self.others


def place_of(session: Session, job: Job) -> Place:
    """The place of a job that waits and is not held."""
    given = {
        "deployment_id": job.deployment_id,
        "tenant_id": job.tenant_id,
        "job_class": job.job_class,
        "job_id": job.id,
        "most": MOST_COUNTED,
    }
    for depth in _DEPTHS:
        row = session.execute(_PLACE, given | {"depth": depth}).one()
        if row.own + row.others > MOST_COUNTED:
            break
        if row.found and row.deepest < depth:
            return Place(row.own, row.others, tuple(row.own_jobs or ()))
    return Place(0, MOST_COUNTED, (), more=True)
