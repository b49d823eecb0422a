"""Recording what happened to a job: its event, the webhook deliveries that the event causes, and the doorbells.

Everything here runs inside the transaction that changed the job.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from penstock.jobs.models import Event, Job
from penstock.jobs.presentation import job_document
from penstock.webhooks.queueing import Owed, listening, queue_delivery, queue_for_endpoints


class EventType(StrEnum):
    """The events of a job. Those of final states are what webhooks get unless they name others."""

    QUEUED = "job.queued"
    RUNNING = "job.running"
    PROGRESS = "job.progress"
    REQUEUED = "job.requeued"
    REROUTED = "job.rerouted"
    CANCEL_REQUESTED = "job.cancel_requested"
    REWOUND = "output.rewound"
    SUCCEEDED = "job.succeeded"
    FAILED = "job.failed"
    CANCELLED = "job.cancelled"
    EXPIRED = "job.expired"

    @property
    def final(self) -> bool:
        return self in _FINAL


_FINAL = frozenset({EventType.SUCCEEDED, EventType.FAILED, EventType.CANCELLED, EventType.EXPIRED})


@dataclass(frozen=True, slots=True)
class Happening:
    """What is to be recorded of a job whose row was just changed (its `last_event` already counts this one)."""

    job: Job
    type: EventType
    data: dict[str, Any]


def record(session: Session, happenings: list[Happening]) -> None:
    """Write the events, and a delivery of each for those that asked for it. The feed takes them by a trigger."""
    if not happenings:
        return
    written = session.execute(
        insert(Event).returning(Event.job_id, Event.number, listening("event.tenant_id", "event.type")),
        [
            {
                "job_id": happening.job.id,
                "number": happening.job.last_event,
                "tenant_id": happening.job.tenant_id,
                "type": happening.type.value,
                "data": happening.data,
            }
            for happening in happenings
        ],
    )
    endpoints = {(job_id, number): endpoint_ids for job_id, number, endpoint_ids in written}
    for happening in happenings:
        tell(session, happening, endpoints[happening.job.id, happening.job.last_event] or [])


def tell(session: Session, happening: Happening, endpoint_ids: Sequence[str]) -> None:
    """Queue the event for those who want it: the job's own address, and the tenant's endpoints."""
    job = happening.job
    if not (endpoint_ids or _wanted(happening)):
        return
    owed = Owed(job.tenant_id, happening.type.value, job_document(job), job.id, job.last_event)
    if _wanted(happening):
        assert job.webhook is not None
        queue_delivery(session, owed, job.webhook["url"])
    if endpoint_ids:
        queue_for_endpoints(session, owed, endpoint_ids)


def events_after(session: Session, job_id: str, number: int) -> list[Event]:
    """The job's events with a number above `number`, in order."""
    return list(
        session.scalars(select(Event).where(Event.job_id == job_id, Event.number > number).order_by(Event.number))
    )


def _wanted(happening: Happening) -> bool:
    webhook = happening.job.webhook
    if webhook is None:
        return False
    return happening.type.value in webhook["events"] if webhook.get("events") else happening.type.final
