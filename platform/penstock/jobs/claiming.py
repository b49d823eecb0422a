"""Claims: as many jobs as a worker has room for become its own, in one transaction. Nothing here commits."""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Float, LargeBinary, column, select, text
from sqlalchemy.orm import Session

from penstock.fairness.prefixes import RecentPrefixes
from penstock.fairness.turns import next_jobs
from penstock.jobs.events import EventType, Happening, record
from penstock.jobs.holding import Claim, unpack_journal
from penstock.jobs.leaving import MUST_LEAVE
from penstock.jobs.models import Job
from penstock.jobs.states import JobClass

# In a transaction of its own a claim is the run's beginning: `now()` is the very moment of the JobRun.
_CLAIM: Final = select(
    Job, column("weight", Float), column("seconds_left", Float), column("checkpoint", LargeBinary)
).from_statement(
    text(
        f"""
        UPDATE job SET
            state = 'running', fence=(job.fence + 1), runs = job.runs + 1, last_event = job.last_event + 1,
            lease_holder = :worker_id,
            lease_expires_at = clock_timestamp() + make_interval(secs => :lease_seconds),
            started_at = coalesce(job.started_at, now())
        FROM tenant, unnest(CAST(:ids AS text[])) AS chosen (id)
        LEFT JOIN job_journal AS kept ON kept.job_id = chosen.id
        WHERE job.id = chosen.id AND tenant.id = job.tenant_id AND NOT {MUST_LEAVE}
        RETURNING job.*, tenant.weight,
            CAST(extract(epoch FROM job.deadline - clock_timestamp()) AS double precision) AS seconds_left,
            kept.entries AS checkpoint
        """  # noqa: S608  # made of constants alone
    )
)
_BEGIN: Final = text(
    """
    INSERT INTO job_run (job_id, fence, worker_id, resumed_at_position)
    SELECT run.job_id, run.fence, :worker_id, run.resumed_at_position
    FROM unnest(CAST(:ids AS text[]), CAST(:fences AS bigint[]), CAST(:positions AS integer[]))
        AS run (job_id, fence, resumed_at_position)
    """
)


def claim(
    session: Session,
    *,
    worker_id: str,
    deployment_id: str,
    lease_seconds: float,
    recent_prefixes: Sequence[int] = (),
) -> Claim | None:
    """Take the job whose turn it is on the deployment (`penstock.fairness.turns`). None when nothing may be claimed.

    `recent_prefixes` are fingerprints of the prompts that this worker served last, the newest first.
    """
    claims = claim_all(
        session,
        worker_id=worker_id,
        deployment_id=deployment_id,
        lease_seconds=lease_seconds,
        most=1,
        recent_prefixes=recent_prefixes,
    )
    return claims[0] if claims else None


def claim_all(
    session: Session,
    *,
    worker_id: str,
    deployment_id: str,
    lease_seconds: float,
    most: int,
    recent_prefixes: Sequence[int] = (),
    most_shadow: int | None = None,
) -> list[Claim]:
    """Take up to `most` jobs, the same and in the same order as that many claims, one after the other, would take.

    No more than `most_shadow` of the class shadow are among them, which come after all others.
    """
    recent, claims = RecentPrefixes.of(recent_prefixes), list[Claim]()
    room = most if most_shadow is None else max(most_shadow, 0)
    last_class = JobClass.SHADOW if room >= most else JobClass.BATCH
    while len(claims) < most:
        ids = next_jobs(session, deployment_id, recent.newest_first(), most - len(claims), last_class)
        if not ids and last_class is JobClass.BATCH and room:
            most, last_class = min(most, len(claims) + room), JobClass.SHADOW
            continue
        if not ids:
            break
        taken = _take(session, ids, worker_id, lease_seconds)
        if not taken:  # they are about to be moved, and whatever stands behind them waits until they are
            break
        for each in taken:
            recent.note(each.job.prefix)
        claims += taken
    return claims


def _take(session: Session, ids: Sequence[str], worker_id: str, lease_seconds: float) -> list[Claim]:
    """Make these jobs, which this transaction has locked, the worker's; but those that must leave for the champion."""
    given: dict[str, Any] = {"ids": list(ids), "worker_id": worker_id, "lease_seconds": lease_seconds}
    rows = session.execute(_CLAIM, given, execution_options={"populate_existing": True}).all()
    claims = {
        job.id: Claim(job, job.fence, unpack_journal(kept), weight, seconds_left)
        for job, weight, seconds_left, kept in rows
    }
    taken = [claims[job_id] for job_id in ids if job_id in claims]
    if not taken:
        return []
    session.execute(
        _BEGIN,
        {
            "worker_id": worker_id,
            "ids": [each.job.id for each in taken],
            "fences": [each.fence for each in taken],
            "positions": [len(each.checkpoint) for each in taken],
        },
    )
    told = [(each.job, {"run": each.job.runs, "worker": worker_id}) for each in taken]
    record(session, [Happening(job, EventType.RUNNING, data) for job, data in told])
    return taken
