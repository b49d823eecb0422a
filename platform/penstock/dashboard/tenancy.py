"""Tenants with what they have waiting and running. Takes a session, changes nothing."""

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from penstock.auth.models import Tenant
from penstock.auth.services import list_tenants
from penstock.jobs.models import Job
from penstock.jobs.states import JobState


@dataclass(frozen=True, slots=True)
class TenantRow:
    """A tenant, and how many of its jobs wait and run."""

    tenant: Tenant
    waiting: int
    running: int

    @property
    def state(self) -> str:
        """`active`, `suspended`, or `erasing`."""
        if self.tenant.erasing_since is not None:
            return "erasing"
        return "active" if self.tenant.suspended_at is None else "suspended"


def tenant_rows(session: Session, tenant_id: str | None = None) -> list[TenantRow]:
    """Every tenant, by name, or that one."""
    standing: dict[tuple[str, str], int] = {
        (row.tenant_id, row.state): row.jobs
        for row in session.execute(
            select(Job.tenant_id, Job.state, func.count().label("jobs"))
            .where(Job.state.in_((JobState.QUEUED, JobState.RUNNING)))
            .group_by(Job.tenant_id, Job.state)
        )
    }
    return [
        TenantRow(tenant, standing.get((tenant.id, "queued"), 0), standing.get((tenant.id, "running"), 0))
        for tenant in list_tenants(session)
        if tenant_id in (None, tenant.id)
    ]
