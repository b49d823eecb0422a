"""SQL that the statements about turns share.

A lane is what one tenant has waiting in one class of a deployment. Each is found by one probe of `ix_job_waiting`
(a loose index scan), so that finding them all costs as many probes as there are lanes, however many jobs wait in them.
"""

from typing import Final

WAITING: Final = "job.deployment_id = :deployment_id AND job.state = 'queued' AND NOT job.held"
"""What may be claimed. As `ix_job_waiting` has it."""


def level(charged: str, pledged: str, weight: str) -> str:
    """By what tenants are ordered: what they were charged, and what their new jobs have pledged."""
    return f"{charged} + ({pledged}) / {weight}"


def sleeps(deployment_id: str, tenant_id: str) -> str:
    """Whether a tenant has no job that waits or runs on a deployment.

    Two probes of an index: PostgreSQL would turn an EXISTS into a list of all that waits, and look in that.
    """
    mine = f"SELECT true FROM job WHERE deployment_id = {deployment_id} AND tenant_id = {tenant_id}"  # noqa: S608  # constants alone
    return f"""(
        ({mine} AND job_class IN (0, 1, 2) AND state = 'queued' AND NOT held LIMIT 1) IS NULL
        AND ({mine} AND state = 'running' LIMIT 1) IS NULL
    )"""


LANES: Final = f"""
lane AS (
    (SELECT job_class, tenant_id FROM job WHERE {WAITING} ORDER BY job_class, tenant_id LIMIT 1)
    UNION ALL
    SELECT following.job_class, following.tenant_id
    FROM lane CROSS JOIN LATERAL (
        SELECT job_class, tenant_id FROM job
        WHERE {WAITING} AND (job_class, tenant_id) > (lane.job_class, lane.tenant_id)
        ORDER BY job_class, tenant_id LIMIT 1
    ) AS following
)"""  # noqa: S608  # made of constants alone
"""The lanes of a deployment; needs `WITH RECURSIVE`."""

TURNS: Final = f"""
{LANES}, pledge AS (
    SELECT tenant_id, sum(prompt_tokens) AS tokens FROM job
    WHERE deployment_id = :deployment_id AND state = 'running' AND charged = 0
    GROUP BY tenant_id
), turn AS MATERIALIZED (
    SELECT lane.job_class, lane.tenant_id, tenant.weight,
           coalesce(fair_share.charged, 0) AS charged, coalesce(pledge.tokens, 0) AS pledged
    FROM lane
    JOIN tenant ON tenant.id = lane.tenant_id AND tenant.suspended_at IS NULL
    LEFT JOIN pledge ON pledge.tenant_id = lane.tenant_id
    LEFT JOIN fair_share
        ON fair_share.tenant_id = lane.tenant_id AND fair_share.deployment_id = :deployment_id
    ORDER BY lane.job_class, {level("coalesce(fair_share.charged, 0)", "coalesce(pledge.tokens, 0)", "tenant.weight")},
        lane.tenant_id
)"""  # noqa: S608  # made of constants alone
"""The lanes in the order of their turns; those of suspended tenants have none.

A job that runs and has not been charged yet counts with its prompt, as pledged: otherwise one tenant would take every
slot that is free at once, before its first charge.
"""

IN_LANE: Final = "priority DESC, deadline, queued_at, id"
"""The order within a lane. As `ix_job_waiting` has it."""

PLEDGE: Final = "CASE WHEN charged = 0 THEN coalesce(prompt_tokens, 0) ELSE 0 END"
"""What a claim of the job would pledge: nothing once it has been charged for."""
