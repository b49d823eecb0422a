"""Writing new jobs: rows, first events and doorbells of any number of them, in one statement.

The rows travel as one JSON document, which PostgreSQL takes apart by the table's own types: the statement is the same
for one job and for many, and a document costs less than a parameter for each column of each row. `json` and not `jsonb`
it is, so that a schema's properties keep their order.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ARRAY, Boolean, Text, TextualSelect, column, text
from sqlalchemy.orm import Session, make_transient_to_detached

from penstock.fairness.counters import wake
from penstock.fairness.lanes import sleeps
from penstock.ids import ascending_ids
from penstock.jobs.events import EventType, Happening, tell
from penstock.jobs.models import Job
from penstock.outbox.services import Topic

GIVEN: Final = (
    "tenant_id", "kind", "model", "input", "params", "seed", "tags", "metadata", "webhook", "retry_of",
    "batch_id", "batch_line", "job_class", "priority", "deadline", "prefix", "token_budget", "terms", "api_key_id",
    "deployment_id", "model_name", "model_version", "routing", "prompt_tokens", "traceparent",
)  # fmt: skip
"""The columns that a new row gives beside its id; the others begin as the database has them."""
ASSIGNED: Final = ("job_id", "rollout_id", "stage", "step", "arm", "share", "unit", "key")
"""The columns that an assignment gives."""

_TABLE: Final = Job.__table__
_COLUMNS: Final = ", ".join(("id", *GIVEN))
# What the row begins with beside these; the rest of its columns begin as null.
_BEGUN: Final = [each for each in _TABLE.columns if each.server_default is not None and each.name not in GIVEN]
_TOLD: Final = ", ".join(f"written.{each.name}" for each in _BEGUN)
_EMPTY: Final = dict.fromkeys(Job.__mapper__.column_attrs.keys())

_ASSIGN: Final = f""", assigned AS (
        INSERT INTO assignment ({", ".join(ASSIGNED)})
        SELECT {", ".join(ASSIGNED)}
        FROM json_populate_recordset(NULL::assignment, CAST(:assigned AS json))
    )"""  # noqa: S608  # made of constants alone


def _write(assigned: str = "") -> TextualSelect:
    # What a lane's tenant has there already is looked up before these rows are seen, and before their counter is:
    # whoever sleeps is woken by a statement of its own, after the foreign keys' locks, which a counter comes behind.
    written = text(
        f"""
    WITH written AS (
        INSERT INTO job ({_COLUMNS}, last_event)
        SELECT {_COLUMNS}, 1 FROM json_populate_recordset(NULL::job, CAST(:rows AS json))
        RETURNING job.*
    ), told AS (
        INSERT INTO event (job_id, number, tenant_id, type, data)
        SELECT id, last_event, tenant_id, '{EventType.QUEUED}', jsonb_build_object('model_version', model_version)
        FROM written
    ), lane AS MATERIALIZED (
        SELECT tenant_id, deployment_id, count(*) AS jobs FROM written GROUP BY tenant_id, deployment_id
    ), rung AS (
        INSERT INTO outbox_message (topic, payload)
        SELECT '{Topic.DOORBELL}', jsonb_build_object('deployment_id', deployment_id, 'jobs', jobs) FROM lane
    ), listening AS MATERIALIZED (
        SELECT tenant_id, array_agg(id) AS endpoints FROM webhook_endpoint
        WHERE tenant_id IN (SELECT tenant_id FROM lane) AND disabled_at IS NULL AND '{EventType.QUEUED}' = ANY (events)
        GROUP BY tenant_id
    ), asleep AS MATERIALIZED (
        SELECT tenant_id, deployment_id FROM lane WHERE {sleeps("lane.deployment_id", "lane.tenant_id")}
    ){assigned}
    SELECT written.id, {_TOLD}, listening.endpoints, asleep.tenant_id IS NOT NULL AS sleeps
    FROM written LEFT JOIN listening USING (tenant_id) LEFT JOIN asleep USING (tenant_id, deployment_id)
    """  # noqa: S608  # made of constants alone
    )
    return written.columns(_TABLE.c.id, *_BEGUN, column("endpoints", ARRAY(Text)), column("sleeps", Boolean))


_WRITE: Final = _write()
_WRITE_ASSIGNED: Final = _write(_ASSIGN)


def enqueue(session: Session, rows: Sequence[dict[str, Any]], assigned: Sequence[dict[str, Any]] = ()) -> list[Job]:
    """Write the jobs of one tenant, each with the columns `GIVEN`, and ring for them; in the order of the rows.

    Rows that have an `id` already have ascending ones; `assigned` names such rows, with the columns `ASSIGNED`.
    The tenant is woken where it sleeps (`penstock.fairness.counters`), so this locks counters: it comes last.
    """
    if not rows:
        return []
    # They are queued at one moment, so that it is their ids that keep them in order.
    identified = ({"id": job_id} | row for job_id, row in zip(ascending_ids("job"), rows, strict=False))
    named = {row["id"]: row for row in identified}
    documents = {"rows": _document([*named.values()])} | ({"assigned": _document(assigned)} if assigned else {})
    written = session.execute(_WRITE_ASSIGNED if assigned else _WRITE, documents)
    found = {row["id"]: dict(row) for row in written.mappings()}
    jobs = [_as_written(session, row, found[job_id]) for job_id, row in named.items()]
    for job in jobs:
        happening = Happening(job, EventType.QUEUED, {"model_version": job.model_version})
        tell(session, happening, found[job.id]["endpoints"] or ())
    _wake(session, [job for job in jobs if found[job.id]["sleeps"]])
    return jobs


def _document(rows: Sequence[dict[str, Any]]) -> str:
    return json.dumps(rows, ensure_ascii=False, separators=(",", ":"), default=datetime.isoformat)


def _as_written(session: Session, given: Mapping[str, Any], found: Mapping[str, Any]) -> Job:
    """The job as the session has what it has read: nothing of the row is asked for again."""
    begun = {each.name: found[each.name] for each in _BEGUN}
    values = _EMPTY | {"user_metadata" if name == "metadata" else name: value for name, value in given.items()} | begun
    job = Job(**values)
    make_transient_to_detached(job)
    session.add(job)
    return job


def _wake(session: Session, jobs: Sequence[Job]) -> None:
    lanes: dict[tuple[str, str], list[str]] = {}
    for job in jobs:
        lanes.setdefault((job.tenant_id, job.deployment_id), []).append(job.id)
    for (tenant_id, deployment_id), job_ids in sorted(lanes.items()):
        wake(session, deployment_id, tenant_id, besides=job_ids)
