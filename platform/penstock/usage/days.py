"""Daily totals: what is left of usage entries that are deleted. Takes a session, never commits."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from penstock.usage.models import UsageEntry

_SUMS: Final = (
    "prompt_tokens",
    "cached_tokens",
    "output_tokens",
    "computed_tokens",
    "recomputed_tokens",
    "device_seconds",
    "recomputed_seconds",
)
_GROUP: Final = "tenant_id, day, model_name, model_version, api_key_id, tags, currency"
_TOTALS: Final = f"jobs, unmeasured_jobs, {', '.join(_SUMS)}, joules, cost"

# One statement deletes the entries and adds them up, so no entry is counted twice or by nobody. Totals are locked in
# the order of their keys, so that two who add to the same ones do not wait for each other.
_ROLL_UP: Final = text(
    f"""
    WITH gone AS (
        DELETE FROM usage_entry WHERE job_id = ANY(CAST(:job_ids AS text[])) RETURNING *
    ), told AS (
        SELECT gone.*, CAST(gone.created_at AT TIME ZONE 'UTC' AS date) AS day,
               ARRAY(SELECT DISTINCT tag FROM unnest(job.tags) AS tag ORDER BY tag) AS tags
        FROM gone JOIN job ON job.id = gone.job_id
    )
    INSERT INTO usage_day AS total ({_GROUP}, {_TOTALS}, digest)
    SELECT {_GROUP}, count(*), count(*) FILTER (WHERE joules IS NULL), {", ".join(f"sum({name})" for name in _SUMS)},
           coalesce(sum(joules), 0), sum(cost),
           sha256(convert_to(
               CAST(jsonb_build_array(model_name, model_version, api_key_id, tags, currency) AS text), 'UTF8'
           )) AS digest
    FROM told GROUP BY {_GROUP} ORDER BY tenant_id, day, digest
    ON CONFLICT (tenant_id, day, digest) DO UPDATE SET
        {", ".join(f"{name} = total.{name} + excluded.{name}" for name in _TOTALS.split(", "))}
    """  # noqa: S608  # made of constants alone
)


def roll_up(session: Session, job_ids: Sequence[str]) -> None:
    """Delete these jobs' usage entries, counting each in its day's totals. Jobs without an entry change nothing."""
    session.execute(_ROLL_UP, {"job_ids": list(job_ids)})


def roll_up_before(session: Session, tenant_id: str, moment: datetime, *, limit: int) -> int:
    """The same for the tenant's oldest entries, up to so many that were written before `moment`; how many it were."""
    old = (
        select(UsageEntry.job_id)
        .where(UsageEntry.tenant_id == tenant_id, UsageEntry.created_at < moment)
        .order_by(UsageEntry.created_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    job_ids = session.scalars(old).all()
    roll_up(session, job_ids)
    return len(job_ids)
