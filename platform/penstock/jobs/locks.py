"""The one order in which transactions lock what jobs share, so that no two ever wait for each other.

    1  rows of batches, then of jobs: several at once are taken with SKIP LOCKED, or in the order of their ids
    2  a tenant's queue                                 `lock_queue`
    3  budgets, in the order of tenant and currency     `lock_budgets`
    4  counters, in the order of tenant and deployment  `penstock.fairness.counters`

What deals with one job keeps to it by itself. What submits or ends several in one transaction would come back to 2 or 3
after 4, so it takes all of 2 and 3 that it may want before the first of them.
"""

from collections.abc import Collection

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from penstock.usage.models import TenantBudget


def lock_queue(session: Session, tenant_id: str) -> None:
    """Be the only one, until the transaction ends, who adds to the tenant's queue near its limit, or several jobs."""
    lock = text("SELECT pg_advisory_xact_lock(hashtextextended('queued jobs of ' || :tenant, 0))")
    session.execute(lock, {"tenant": tenant_id})


def lock_budgets(session: Session, tenant_ids: Collection[str]) -> None:
    """Lock every budget of these tenants, whatever its currency."""
    if tenant_ids:
        wanted = select(TenantBudget.currency).where(TenantBudget.tenant_id.in_(tenant_ids))
        ordered = wanted.order_by(TenantBudget.tenant_id, TenantBudget.currency)
        session.execute(ordered.with_for_update(key_share=True))
