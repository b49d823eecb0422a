"""Which waiting jobs may be claimed, for those who ring, look and count; `lanes` says the same in SQL for claims."""

from sqlalchemy import ColumnElement, and_, func, select
from sqlalchemy.orm import Session

from penstock.auth.models import Tenant
from penstock.fairness.counters import wake
from penstock.jobs.locks import lock_queue
from penstock.jobs.models import Job
from penstock.jobs.states import JobState
from penstock.outbox.services import Topic, post


def claimable() -> ColumnElement[bool]:
    """Whether a job may be claimed: it waits, is not held, and its tenant is not suspended."""
    suspended = select(Tenant.id).where(Tenant.suspended_at.is_not(None))
    return and_(Job.state == JobState.QUEUED, ~Job.held, Job.tenant_id.not_in(suspended))


def let_claim_again(session: Session, tenant_id: str) -> None:
    """Ring for what waits of a tenant that was just resumed, beginning at the least that others were charged."""
    lock_queue(session, tenant_id)
    waiting = session.execute(
        select(Job.deployment_id, func.array_agg(Job.id))
        .where(Job.tenant_id == tenant_id, claimable())
        .group_by(Job.deployment_id)
        .order_by(Job.deployment_id)
    ).all()
    for deployment_id, _ in waiting:
        post(session, Topic.DOORBELL, {"deployment_id": deployment_id})
    for deployment_id, job_ids in waiting:
        wake(session, deployment_id, tenant_id, besides=job_ids)
