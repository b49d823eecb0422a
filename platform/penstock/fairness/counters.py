"""Virtual token counters of tenants on a deployment, kept in PostgreSQL.

Source: Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024; the engine's own waiting queue keeps the
same ones (`penstock_engine.fairness`). A tenant pays `INPUT_COST` for each input token that had to be computed and
`OUTPUT_COST` for each output token, divided by its weight, while they are generated; the lowest counter goes first. One
that wakes, having had nothing that waited or ran, is lifted to the least of the others, so idling earns no credit.

Counters are the last rows that a transaction locks, in the order of tenant and deployment (`penstock.jobs.locks`).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import text
from sqlalchemy.orm import Session

from penstock.fairness.lanes import LANES

INPUT_COST: Final = 1
OUTPUT_COST: Final = 2

_PAY: Final = """
    INSERT INTO fair_share AS share (tenant_id, deployment_id, charged, charged_at)
    SELECT paid.tenant_id, paid.deployment_id, sum(paid.cost) / tenant.weight, clock_timestamp()
    FROM paid JOIN tenant ON tenant.id = paid.tenant_id
    GROUP BY paid.tenant_id, paid.deployment_id, tenant.weight
    ORDER BY paid.tenant_id, paid.deployment_id
    ON CONFLICT (tenant_id, deployment_id) DO UPDATE
        SET charged = share.charged + excluded.charged, charged_at = excluded.charged_at
    """
_PAY_AS_CHARGED: Final = text(
    f"""
    WITH paid AS (
        SELECT * FROM unnest(CAST(:tenants AS text[]), CAST(:deployments AS text[]), CAST(:costs AS bigint[]))
            AS paid (tenant_id, deployment_id, cost)
    ) {_PAY}
    """  # noqa: S608  # made of constants alone
)
_CHARGE: Final = text(
    f"""
    WITH due AS (
        SELECT * FROM unnest(CAST(:ids AS text[]), CAST(:costs AS bigint[])) AS due (id, cost)
    ), paid AS (
        UPDATE job SET charged = due.cost
        FROM due JOIN job AS before ON before.id = due.id
        WHERE job.id = due.id AND job.charged < due.cost
        RETURNING job.tenant_id, job.deployment_id, due.cost - before.charged AS cost
    ) {_PAY}
    """  # noqa: S608  # made of constants alone
)

# `woken` is empty unless nothing else of the tenant waits or runs here; what is read of the others is read only then.
_WAKE: Final = text(
    f"""
    WITH RECURSIVE woken AS (
        SELECT 1 AS yes WHERE NOT EXISTS (
            SELECT FROM job
            WHERE deployment_id = :deployment_id AND job_class IN (0, 1, 2) AND tenant_id = :tenant_id
              AND state = 'queued' AND NOT held AND id <> ALL(CAST(:besides AS text[]))
        ) AND NOT EXISTS (
            SELECT FROM job
            WHERE deployment_id = :deployment_id AND tenant_id = :tenant_id AND state = 'running'
              AND id <> ALL(CAST(:besides AS text[]))
        )
    ), {LANES}, active AS (
        SELECT tenant_id FROM lane JOIN tenant ON tenant.id = lane.tenant_id
        WHERE tenant_id <> :tenant_id AND tenant.suspended_at IS NULL
        UNION
        SELECT tenant_id FROM job
        WHERE deployment_id = :deployment_id AND state = 'running' AND tenant_id <> :tenant_id
    ), floor AS (
        SELECT coalesce(
            (SELECT min(charged) FROM fair_share JOIN active USING (tenant_id) WHERE deployment_id = :deployment_id),
            (SELECT charged FROM fair_share WHERE deployment_id = :deployment_id ORDER BY charged_at DESC LIMIT 1),
            0
        ) AS charged FROM woken
    ), lifted AS (
        UPDATE fair_share SET charged = floor.charged FROM floor
        WHERE deployment_id = :deployment_id AND tenant_id = (
            SELECT tenant_id FROM fair_share
            WHERE deployment_id = :deployment_id AND tenant_id = :tenant_id
            FOR UPDATE SKIP LOCKED
        ) AND fair_share.charged < floor.charged
    )
    INSERT INTO fair_share (tenant_id, deployment_id, charged)
    SELECT :tenant_id, :deployment_id, floor.charged FROM floor
    WHERE NOT EXISTS (SELECT FROM fair_share WHERE deployment_id = :deployment_id AND tenant_id = :tenant_id)
    ON CONFLICT DO NOTHING
    """  # noqa: S608  # made of constants alone
)


@dataclass(frozen=True, slots=True)
class Due:
    """What a job has cost so far, in all of its runs, its tenant's weight aside."""

    job_id: str
    cost: int


@dataclass(frozen=True, slots=True)
class Paid:
    """What a job's row was just charged beyond what it had been charged before."""

    tenant_id: str
    deployment_id: str
    cost: int


def cost_of(*, computed_input: int, output: int) -> int:
    """The cost of so many tokens."""
    return INPUT_COST * max(computed_input, 0) + OUTPUT_COST * output


def charge(session: Session, due: Sequence[Due]) -> None:
    """Charge the tenants what their jobs cost beyond what was charged for them before.

    The jobs' rows must be locked by this transaction, under a fence that holds. A cost is a total of the job: whoever
    did the work charges it once, and what a next holder generates again is not charged again.
    """
    if due:
        session.execute(_CHARGE, {"ids": [each.job_id for each in due], "costs": [each.cost for each in due]})


def pay(session: Session, paid: Sequence[Paid]) -> None:
    """Add to the tenants' counters what this transaction has charged their jobs' rows itself."""
    due = [each for each in paid if each.cost > 0]
    if due:
        given = {"tenants": [each.tenant_id for each in due], "deployments": [each.deployment_id for each in due]}
        session.execute(_PAY_AS_CHARGED, given | {"costs": [each.cost for each in due]})


def wake(session: Session, deployment_id: str, tenant_id: str, *, besides: Collection[str]) -> None:
    """Lift the tenant to the others' least, if nothing of it waits or runs there but the jobs `besides`: the new ones.

    It waits for no row that is there: one that is locked is being charged, so its tenant is awake. For one that
    somebody else is just making it does, so whoever calls this for several deployments holds the tenant's queue.
    """
    session.execute(_WAKE, {"deployment_id": deployment_id, "tenant_id": tenant_id, "besides": list(besides)})
