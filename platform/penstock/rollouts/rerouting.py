"""Jobs that wait for a version which has lost its rollout go to the champion, in the transaction that ended it.

`penstock.jobs.leaving` says which of them. Readers of one that begins anew are told by `output.rewound`. Price and
terms stay those of the submit.

What is beyond a batch, and submits that chose the version before the move and commit after it, are moved by sweeps
(`penstock.rollouts.stragglers`): to lock the rollout in every submit would cost each of them more. Until then nobody
can claim them.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Final

from sqlalchemy import Row, select, text
from sqlalchemy.orm import Session

from penstock.fairness.counters import wake
from penstock.jobs.events import EventType, Happening, tell
from penstock.jobs.holding import Held
from penstock.jobs.lease import hand_back
from penstock.jobs.leaving import leaves, sent_by
from penstock.jobs.models import Job
from penstock.jobs.states import JobState, RunOutcome
from penstock.outbox.services import Topic, post
from penstock.registry.models import Deployment
from penstock.registry.tokenizer import TOKENIZER_FILES

MOST_AT_ONCE: Final = 2_000
"""So many jobs one transaction moves, in a fifth of a second; what is beyond them follows at once, in others."""
_NO_LIMIT: Final = 2**31
_SHOWN: Final = 100

_LEAVES: Final = leaves(":rollout", ":context_length", ":anew")
# Two statements, as the waiting and the held lie in different indexes.
_MOVE: Final = """
    WITH chosen AS MATERIALIZED (
        SELECT id, fence, model_version FROM job
        WHERE deployment_id = :source AND state = 'queued' AND {held} AND {leaves}
        ORDER BY id LIMIT :most FOR UPDATE SKIP LOCKED
    ), voided AS (
        DELETE FROM job_journal USING chosen WHERE job_journal.job_id = chosen.id
    ), moved AS (
        UPDATE job SET
            deployment_id = :target, model_version = :version, void_to = chosen.fence, last_event = job.last_event + 1,
            prompt_tokens = CASE WHEN :same_tokens THEN job.prompt_tokens END,
            first_token_at = NULL, cached_tokens = 0,
            routing = CAST(:routing AS jsonb) || jsonb_build_object('from', chosen.model_version)
        FROM chosen WHERE job.id = chosen.id
        RETURNING job.id, job.tenant_id, job.last_event, job.webhook, chosen.model_version AS source_version
    ), told AS (
        INSERT INTO event (job_id, number, tenant_id, type, data)
        SELECT id, last_event, tenant_id, '{event}', jsonb_build_object(
            'from', source_version, 'model_version', CAST(:version AS text), 'reason', CAST(:reason AS text))
        FROM moved
    ), listening AS MATERIALIZED (
        SELECT tenant_id, array_agg(id) AS endpoints FROM webhook_endpoint
        WHERE tenant_id IN (SELECT tenant_id FROM moved) AND disabled_at IS NULL AND '{event}' = ANY (events)
        GROUP BY tenant_id
    )
    SELECT moved.id, tenant_id, coalesce(endpoints, '{{}}') AS endpoints,
           coalesce(webhook -> 'events' ? '{event}', false) AS called
    FROM moved LEFT JOIN listening USING (tenant_id) ORDER BY tenant_id, moved.id
    """
_MOVE_WAITING: Final = text(_MOVE.format(held="NOT held", leaves=_LEAVES, event=EventType.REROUTED))
_MOVE_HELD: Final = text(_MOVE.format(held="held", leaves=_LEAVES, event=EventType.REROUTED))
_LEFT: Final = text(f"SELECT FROM job WHERE deployment_id = :source AND state = 'queued' AND {_LEAVES} LIMIT 1")


@dataclass(frozen=True, slots=True)
class Way:
    """From which version to which, and why."""

    source: Deployment
    target: Deployment
    rollout_id: str
    reason: str
    anew: bool = False
    """Whether what has begun begins anew, rather than to be finished by the version that began it."""

    @property
    def routing(self) -> dict[str, Any]:
        """Why the jobs go where they go, as their documents show it."""
        version = self.target.model_version
        return {"rule": "rerouted", "rollout": self.rollout_id, "version": version, "reason": self.reason}

    @property
    def same_tokens(self) -> bool:
        """Whether both make the same tokens of a prompt; else those of the jobs are not known before they run."""
        one, other = (
            {name: each.manifest.get(name) for name in TOKENIZER_FILES} for each in (self.source, self.target)
        )
        return one == other


@dataclass(frozen=True, slots=True)
class Rerouted:
    """How many jobs were moved, and the first of them."""

    count: int = 0
    job_ids: Sequence[str] = field(default=())

    @property
    def document(self) -> dict[str, Any]:
        return {"count": self.count, "ids": list(self.job_ids)}


def reroute(session: Session, way: Way, *, most: int = MOST_AT_ONCE) -> Rerouted:
    """Move up to `most` jobs that wait, ring for them, and tell their readers.

    The last that a transaction locks: rows of jobs, then counters (`penstock.jobs.locks`). What somebody has locked is
    being claimed or ended, and passed over.
    """
    if way.anew:
        _take_back(session, way)
    waiting = _move(session, _MOVE_WAITING, way, most)
    held = _move(session, _MOVE_HELD, way, most - len(waiting))
    _tell(session, [*waiting, *held])
    if waiting:
        post(session, Topic.DOORBELL, {"deployment_id": way.target.id, "jobs": len(waiting)})
    for tenant_id, rows in groupby(waiting, key=lambda row: row.tenant_id):
        wake(session, way.target.id, tenant_id, besides=[row.id for row in rows])
    ids = sorted(row.id for row in (*waiting, *held))
    return Rerouted(len(ids), ids[:_SHOWN])


def some_left(session: Session, way: Way) -> bool:
    """Whether jobs wait that are yet to be moved, also such as somebody has locked."""
    return session.execute(_LEFT, _given(way)).first() is not None


def _take_back(session: Session, way: Way) -> None:
    """Running jobs of the version wait again; their holders find that out when they next renew."""
    running = (
        select(Job.id, Job.fence)
        .where(
            Job.deployment_id == way.source.id,
            Job.state == JobState.RUNNING,
            Job.cancel_requested_at.is_(None),
            text(sent_by(":rollout")).bindparams(rollout=way.rollout_id),
        )
        .order_by(Job.id)
        .with_for_update(skip_locked=True)
    )
    for job_id, fence in session.execute(running).all():
        # A run that was lost is the platform's: nobody pays for what is thrown away.
        hand_back(session, Held(job_id, fence), RunOutcome.LEASE_LOST, way.reason, max_own_crashes=_NO_LIMIT)


def _move(session: Session, statement: Any, way: Way, most: int) -> Sequence[Row[Any]]:
    told = {
        "target": way.target.id,
        "version": way.target.model_version,
        "same_tokens": way.same_tokens,
        "routing": json.dumps(way.routing),
        "reason": way.reason,
        "most": most,
    }
    return session.execute(statement, _given(way) | told).all()


def _given(way: Way) -> dict[str, Any]:
    """What says which jobs leave."""
    return {
        "rollout": way.rollout_id,
        "source": way.source.id,
        "context_length": way.target.context_length,
        "anew": way.anew,
    }


def _tell(session: Session, rows: Sequence[Row[Any]]) -> None:
    """Queue the event for those who want it: the jobs' own addresses, and the tenants' endpoints."""
    wanted = {row.id: row.endpoints for row in rows if row.endpoints or row.called}
    if not wanted:
        return
    jobs = select(Job).where(Job.id.in_(wanted)).order_by(Job.id).execution_options(populate_existing=True)
    for job in session.scalars(jobs):
        data = {"from": job.routing["from"], "model_version": job.model_version, "reason": job.routing["reason"]}
        tell(session, Happening(job, EventType.REROUTED, data), wanted[job.id])
