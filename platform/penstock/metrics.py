"""What Prometheus reads at `/metrics`: this process's requests and streams, and the queues as the database has them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from penstock.db import Database
from penstock.jobs.models import Job
from penstock.jobs.states import JobState
from penstock.logs import get_logger
from penstock.outbox.models import OutboxMessage
from penstock.registry.hosting_services import live_hostings
from penstock.registry.models import Deployment

_LATENCY_BUCKETS: Final = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0)
_DEPLOYMENT_LABELS: Final = ("model", "version", "deployment")
log = get_logger(__name__)


class Metrics:
    """The metrics of one web process."""

    def __init__(self, database: Database, open_streams: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "penstock_http_requests", "Requests answered", ("method", "route", "status"), registry=self.registry
        )
        self.latency = Histogram(
            "penstock_http_request_seconds",
            "Time until the answer began",
            ("method", "route"),
            buckets=_LATENCY_BUCKETS,
            registry=self.registry,
        )
        streams = Gauge("penstock_waiting_requests", "Open streams and waits of this process", registry=self.registry)
        streams.set_function(open_streams)
        self.registry.register(_DatabaseCollector(database))

    def exposition(self) -> bytes:
        """Everything in Prometheus's text format."""
        return generate_latest(self.registry)


@dataclass(frozen=True, slots=True)
class _Queue:
    """One deployment's jobs. `oldest_seconds` is 0 when none waits."""

    labels: tuple[str, str, str]
    waiting: int
    running: int
    oldest_seconds: float
    free_slots: int


class _DatabaseCollector(Collector):
    """Reads the database when Prometheus asks.

    While it is down, `penstock_database_up` says so and the rest is left out.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def collect(self) -> Iterator[GaugeMetricFamily]:
        up = GaugeMetricFamily("penstock_database_up", "Whether the database answers")
        try:
            with self._database.transaction() as session:
                families = [*_queue_families(_queues(session)), *_outbox_families(session)]
        except SQLAlchemyError as error:
            log.warning("metrics.database_unavailable", error=type(error).__name__)
            families = []
        up.add_metric([], float(bool(families)))
        yield up
        yield from families


def _queue_families(queues: list[_Queue]) -> list[GaugeMetricFamily]:
    figures: dict[str, tuple[str, Callable[[_Queue], float]]] = {
        "penstock_jobs_waiting": ("Jobs that wait", lambda queue: queue.waiting),
        "penstock_jobs_running": ("Jobs that run", lambda queue: queue.running),
        "penstock_oldest_waiting_seconds": (
            "Age of the job that has waited longest",
            lambda queue: queue.oldest_seconds,
        ),
        "penstock_free_slots": ("Jobs that live workers could take now", lambda queue: queue.free_slots),
    }
    families = []
    for name, (meaning, figure) in figures.items():
        family = GaugeMetricFamily(name, meaning, labels=_DEPLOYMENT_LABELS)
        for queue in queues:
            family.add_metric(queue.labels, figure(queue))
        families.append(family)
    return families


def _queues(session: Session) -> list[_Queue]:
    free: dict[str, int] = {}
    for hosting in live_hostings(session):
        free[hosting.deployment_id] = free.get(hosting.deployment_id, 0) + hosting.free_slots
    waiting = func.count(Job.id).filter(Job.state == JobState.QUEUED)
    age = func.extract("epoch", func.now() - func.min(Job.queued_at).filter(Job.state == JobState.QUEUED))
    rows = session.execute(
        select(Deployment, waiting, func.count(Job.id) - waiting, func.coalesce(age, 0))
        .outerjoin(Job, (Job.deployment_id == Deployment.id) & Job.state.in_((JobState.QUEUED, JobState.RUNNING)))
        .where(Deployment.state != "retired")
        .group_by(Deployment.id)
        .order_by(Deployment.id)
    )
    return [
        _Queue(
            (deployment.model_name, deployment.model_version, deployment.id),
            queued,
            running,
            float(max(oldest, 0)),
            free.get(deployment.id, 0),
        )
        for deployment, queued, running, oldest in rows
    ]


def _outbox_families(session: Session) -> list[GaugeMetricFamily]:
    count, age = outbox_backlog(session)
    messages = GaugeMetricFamily("penstock_outbox_messages", "Messages that no relay has passed on yet", value=count)
    oldest = GaugeMetricFamily("penstock_outbox_oldest_seconds", "Age of the oldest of them", value=age)
    return [messages, oldest]


def outbox_backlog(session: Session) -> tuple[int, float]:
    """How many messages wait for a relay, and for how many seconds the oldest has."""
    age = func.extract("epoch", func.now() - func.min(OutboxMessage.created_at))
    row: Any = session.execute(select(func.count(), func.coalesce(age, 0)).select_from(OutboxMessage)).one()
    return int(row[0]), max(float(row[1]), 0.0)
