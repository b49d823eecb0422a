"""What was used, summed up by day, model, key, tag or tenant. Takes a session, never commits."""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import (
    TIMESTAMP,
    ColumnElement,
    Select,
    Subquery,
    case,
    cast,
    func,
    literal,
    null,
    select,
    text,
    true,
    tuple_,
    union_all,
)
from sqlalchemy.orm import Session

from penstock.errors import ValidationFailed
from penstock.jobs.models import JobTag
from penstock.usage.models import UsageDay, UsageEntry

_NAMES: Final = ("tenant_id", "model_name", "model_version", "api_key_id", "currency")
_JOBS: Final = ("jobs", "unmeasured_jobs")
_COUNTS: Final = ("prompt_tokens", "cached_tokens", "output_tokens", "computed_tokens", "recomputed_tokens")
_FIGURES: Final = ("device_seconds", "recomputed_seconds", "joules", "cost")
_IN_MEMORY: Final = text("SET LOCAL work_mem = '32MB'")
"""PostgreSQL expects many groups of an expression, and with its usual 4 MB would sort all entries on disk first."""


class Grouping(StrEnum):
    """By what usage is told apart."""

    DAY = "day"
    MODEL = "model"
    VERSION = "version"
    KEY = "key"
    TAG = "tag"
    TENANT = "tenant"


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which usage, and how it is told apart. Times are those of the jobs' ends, from `since` up to before `until`.

    What is kept by the day counts as a whole, at the first moment of its day (UTC).
    `tenant_id` None is all tenants. By `tag` a job counts once for each of its tags, so rows by tag do not add up.
    """

    groups: Sequence[Grouping]
    tenant_id: str | None
    since: datetime | None = None
    until: datetime | None = None
    model: str | None = None
    tag: str | None = None


@dataclass(frozen=True, slots=True)
class UsageRow:
    """The usage of one group. `joules` is None unless all its jobs were measured, `cost` where none has a price."""

    group: dict[str, str]
    currency: str | None
    jobs: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    computed_tokens: int
    recomputed_tokens: int
    device_seconds: float
    recomputed_seconds: float
    joules: float | None
    cost: Decimal | None


def report(
    session: Session, wanted: Wanted, *, limit: int, after: str | None = None
) -> tuple[list[UsageRow], str | None]:
    """A page of rows in the order of their groups, and the cursor of the next page if there is one.

    Jobs of different currencies are never added: the currency is part of every group. Raises `ValidationFailed` for a
    cursor of another question.
    """
    entries = _entries(wanted)
    columns = [entries.c[f"by_{group.value}"] for group in wanted.groups] + [entries.c.currency_text]
    query = select(*columns, *_sums(entries))
    if after is not None:
        query = query.where(tuple_(*columns) > tuple_(*_parse(after, len(columns))))
    session.execute(_IN_MEMORY)
    rows = session.execute(query.group_by(*columns).order_by(*columns).limit(limit + 1)).all()
    found = [_row(wanted.groups, row) for row in rows[:limit]]
    return found, _cursor(rows[limit - 1], len(columns)) if len(rows) > limit else None


def _entries(wanted: Wanted) -> Subquery:
    """The usage that is asked for with the names of its groups, by tag once for each tag: jobs, and totals of days."""
    found = union_all(_jobs(wanted), _days(wanted)).subquery()
    names: dict[Grouping, ColumnElement[str]] = {
        Grouping.DAY: func.to_char(func.timezone("UTC", found.c.moment), "YYYY-MM-DD"),
        Grouping.MODEL: found.c.model_name,
        Grouping.VERSION: found.c.model_version,
        Grouping.KEY: func.coalesce(found.c.api_key_id, ""),
        Grouping.TAG: func.coalesce(found.c.tag, ""),
        Grouping.TENANT: found.c.tenant_id,
    }
    return (
        select(
            *(names[group].label(f"by_{group.value}") for group in wanted.groups),
            func.coalesce(found.c.currency, "").label("currency_text"),
            *(found.c[name] for name in (*_JOBS, *_COUNTS, *_FIGURES)),
        )
        .where(*_conditions(wanted, found))
        .subquery()
    )


def _jobs(wanted: Wanted) -> Select[Any]:
    """Usage that is kept job by job, each like a day of one job; with its tags where they are told apart.

    They are read from `job_tag`, for the jobs' own rows are wide.
    """
    told = Grouping.TAG in wanted.groups
    query = select(
        UsageEntry.created_at.label("moment"),
        (JobTag.tag if told else null()).label("tag"),
        literal(1).label("jobs"),
        case((UsageEntry.joules.is_(None), 1), else_=0).label("unmeasured_jobs"),
        *(getattr(UsageEntry, name) for name in (*_NAMES, *_COUNTS, *_FIGURES)),
    )
    if told:
        of_the_job = (JobTag.job_id == UsageEntry.job_id) & (JobTag.tenant_id == UsageEntry.tenant_id)
        query = query.outerjoin(JobTag, of_the_job)
    if wanted.tag is not None:
        query = query.where(UsageEntry.job_id.in_(select(JobTag.job_id).where(JobTag.tag == wanted.tag)))
    return query


def _days(wanted: Wanted) -> Select[Any]:
    """Usage that is kept by the day, at that day's first moment; with its tags where they are told apart."""
    told = Grouping.TAG in wanted.groups
    tags = func.unnest(UsageDay.tags).table_valued("tag").render_derived(name="tag_of")
    query = select(
        func.timezone("UTC", cast(UsageDay.day, TIMESTAMP)).label("moment"),
        (tags.c.tag if told else null()).label("tag"),
        *(getattr(UsageDay, name) for name in (*_JOBS, *_NAMES, *_COUNTS, *_FIGURES)),
    )
    if told:
        query = query.outerjoin(tags, true())
    return query.where(UsageDay.tags.contains([wanted.tag])) if wanted.tag is not None else query


def _sums(entries: Subquery) -> list[ColumnElement[Any]]:
    return [
        *(func.coalesce(func.sum(entries.c[name]), 0) for name in (*_JOBS, *_COUNTS)),
        *(func.sum(entries.c[name]) for name in _FIGURES),
    ]


def _conditions(wanted: Wanted, found: Subquery) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if wanted.tenant_id is not None:
        conditions.append(found.c.tenant_id == wanted.tenant_id)
    if wanted.since is not None:
        conditions.append(found.c.moment >= wanted.since)
    if wanted.until is not None:
        conditions.append(found.c.moment < wanted.until)
    if wanted.model is not None:
        conditions.append(found.c.model_name == wanted.model)
    return conditions


def _row(groups: Sequence[Grouping], row: Any) -> UsageRow:
    names, (currency, jobs, unmeasured, *figures) = row[: len(groups)], row[len(groups) :]
    counts, (seconds, recomputed, joules, cost) = figures[: len(_COUNTS)], figures[len(_COUNTS) :]
    return UsageRow(
        group=dict(zip((group.value for group in groups), names, strict=True)),
        currency=currency or None,
        jobs=int(jobs),
        **dict(zip(_COUNTS, map(int, counts), strict=True)),
        device_seconds=float(seconds),
        recomputed_seconds=float(recomputed),
        joules=None if unmeasured else float(joules),
        cost=cost,
    )


def _cursor(row: Any, columns: int) -> str:
    return urlsafe_b64encode(json.dumps(list(row[:columns])).encode()).decode().rstrip("=")


def _parse(cursor: str, columns: int) -> list[str]:
    try:
        names = json.loads(urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or len(names) != columns or not all(map(_storable, names)):
        raise ValidationFailed("must be the `next` of a page of the same question", field="after")
    return names


def _storable(name: Any) -> bool:
    """Whether PostgreSQL could have such a name."""
    return isinstance(name, str) and "\0" not in name and name.encode(errors="ignore").decode() == name
