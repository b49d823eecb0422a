"""Which jobs a list shows, and how they are found: newest first, by an index whatever is asked for.

What holds for one job (a state, a key) narrows the walk along an index that ends with the job's id. What holds for
several values (some states, the versions of a model) is walked for each, and the heads of these walks are merged: a
page costs a page's length for each value, never a sort of all that matches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, FromClause, Select, Text, func, literal, select, true
from sqlalchemy.dialects.postgresql import ARRAY

from penstock.ids import first_id
from penstock.jobs.models import Job, JobTag
from penstock.jobs.states import JobClass, JobState
from penstock.registry.models import Deployment
from penstock.routing.services import model_name_of

_MOST_SKEW_SECONDS: Final = 3600.0
"""Ids are made by the clocks of web processes, never so far from the database's that wrote `created_at`."""


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs a listing shows; None and empty mean all. A `version` is one of the `model`'s."""

    states: Sequence[JobState] = ()
    model: str | None = None
    tag: str | None = None
    batch: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    version: str | None = None
    job_class: JobClass | None = None
    key: str | None = None
    error: str | None = None
    finished_after: datetime | None = None
    finished_before: datetime | None = None


def matching_ids(tenant_id: str, wanted: JobFilter, *, limit: int, before: str | None = None) -> Select[str]:
    """The ids of the tenant's newest jobs that match, at most `limit`, of those before the id `before`."""
    lanes = _lanes(wanted)
    query, ids = (select(Job.id), [Job.id]) if wanted.tag is None else _tagged(tenant_id, wanted.tag)
    query = query.where(Job.tenant_id == tenant_id, *_conditions(wanted), *(lane.condition for lane in lanes))
    for job_id in ids:  # both sides of a join, for PostgreSQL concludes nothing from one to the other
        query = query.where(*_between(job_id, wanted, before))
    query = query.order_by(ids[0].desc()).limit(limit)
    if not lanes:
        return query
    sources = [lane.source for lane in lanes]
    newest = query.correlate(*sources).lateral("newest")
    merged = sources[0]
    for source in (*sources[1:], newest):
        merged = merged.join(source, true())
    return select(newest.c.id).select_from(merged).order_by(newest.c.id.desc()).limit(limit)


@dataclass(frozen=True, slots=True)
class _Lane:
    """Values that are walked one by one, and what a job of one of them has."""

    source: FromClause
    condition: ColumnElement[bool]


def _lanes(wanted: JobFilter) -> list[_Lane]:
    lanes = []
    # The index of a model's versions goes on with the state: all states are walked where none was named.
    named = wanted.states or (tuple(JobState) if wanted.model is not None else ())
    if len(named) > 1:
        states = sorted({state.value for state in named})
        asked = func.unnest(literal(states, ARRAY(Text))).table_valued("state", name="asked").render_derived()
        lanes.append(_Lane(asked, Job.state == asked.c.state))
    if wanted.model is not None:
        versions = _versions(model_name_of(wanted.model), wanted.version)
        lanes.append(_Lane(versions, Job.deployment_id == versions.c.id))
    return lanes


def _versions(name: str, version: str | None) -> FromClause:
    query = select(Deployment.id).where(Deployment.model_name == name)
    return (query if version is None else query.where(Deployment.model_version == version)).subquery("versions")


def _tagged(tenant_id: str, tag: str) -> tuple[Select[str], list[Any]]:
    tagged = select(JobTag.job_id.label("id")).join(Job, Job.id == JobTag.job_id)
    return tagged.where(JobTag.tenant_id == tenant_id, JobTag.tag == tag), [JobTag.job_id, Job.id]


def _conditions(wanted: JobFilter) -> list[ColumnElement[bool]]:
    (one_state,) = wanted.states if len(wanted.states) == 1 else (None,)
    by_spelling = wanted.model if wanted.model != model_name_of(wanted.model or "") else None
    conditions: list[ColumnElement[bool]] = [
        column_ == value
        for column_, value in (
            (Job.state, one_state),
            (Job.model, by_spelling),
            (Job.batch_id, wanted.batch),
            (Job.job_class, wanted.job_class),
            (Job.api_key_id, wanted.key),
        )
        if value is not None
    ]
    if wanted.error is not None:
        conditions += [Job.error.is_not(None), Job.error["code"].astext == wanted.error]
    return (
        conditions
        + _within(Job.created_at, wanted.created_after, wanted.created_before)
        + _within(Job.finished_at, wanted.finished_after, wanted.finished_before)
    )


def _within(moment: Any, after: datetime | None, before: datetime | None) -> list[ColumnElement[bool]]:
    return [*([moment > after] if after is not None else []), *([moment < before] if before is not None else [])]


def _between(job_id: Any, wanted: JobFilter, before: str | None) -> list[ColumnElement[bool]]:
    """Where the ids of all that match lie: no job was made after it finished."""
    latest = [moment for moment in (wanted.created_before, wanted.finished_before) if moment is not None]
    bounds = [job_id < _id_about(moment, _MOST_SKEW_SECONDS) for moment in latest]
    if before is not None:
        bounds.append(job_id < before)
    if wanted.created_after is not None:
        bounds.append(job_id >= _id_about(wanted.created_after, -_MOST_SKEW_SECONDS))
    return bounds


def _id_about(moment: datetime, seconds: float) -> str:
    """The first id of a job that was made so many seconds after the moment."""
    shifted = min(max(moment.timestamp() + seconds, 0.0), datetime.max.replace(tzinfo=UTC).timestamp() - 1)
    return first_id("job", datetime.fromtimestamp(shifted, UTC))
