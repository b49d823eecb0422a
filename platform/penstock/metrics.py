"""What Prometheus reads at `/metrics`.

Each process counts what it does itself: the web process requests and streams (`Metrics`), control and worker what
keeping house brings (`HouseMetrics`), the control process webhooks (`ControlMetrics`). The queues, the outbox and the
workers' claims are read from the database, by the web process alone: a figure that several told would be added up.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from penstock.db import Database
from penstock.errors import SettingsError
from penstock.jobs.models import Job
from penstock.jobs.states import JobClass, JobState
from penstock.logs import get_logger
from penstock.outbox.models import OutboxMessage
from penstock.recent import Recent
from penstock.registry.hosting_services import live_hostings
from penstock.registry.models import Deployment, Worker
from penstock.rollouts.models import GateResult, Rollout

_LATENCY_BUCKETS: Final = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0)
_DEPLOYMENT_LABELS: Final = ("model", "version", "deployment")
_CLASSES: Final = tuple(JobClass)
KEPT_SECONDS: Final = 5.0
"""How old what is read from the database may be: counting a long queue takes as long as the queue is."""
log = get_logger(__name__)


class Metrics:
    """The metrics of one web process."""

    def __init__(
        self, database: Database, open_streams: Callable[[], int], clock: Callable[[], float] = time.monotonic
    ) -> None:
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
        self.stream_resumes = Counter(
            "penstock_stream_resumes", "Streams that went on after a Last-Event-ID", registry=self.registry
        )
        streams = Gauge("penstock_waiting_requests", "Open streams and waits of this process", registry=self.registry)
        streams.set_function(open_streams)
        self.registry.register(_DatabaseCollector(database, clock))

    def exposition(self) -> bytes:
        """Everything in Prometheus's text format."""
        return generate_latest(self.registry)


class HouseMetrics:
    """What control and worker processes do beside their own work."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.leases_expired = Counter(
            "penstock_leases_expired", "Jobs that were taken back from a silent holder", registry=registry
        )
        self.outbox_passed_on = Counter(
            "penstock_outbox_passed_on", "Messages of the outbox that were passed on", registry=registry
        )


class RolloutMetrics:
    """What the controller of rollouts does, in the process that leads."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._state = Gauge(
            "penstock_rollout_state", "Rollouts under way: 1 where each stands", ("model", "state"), registry=registry
        )
        self.judgements = Counter(
            "penstock_rollout_judgements", "How often gates were judged", ("verdict",), registry=registry
        )
        self.turn_seconds = Histogram(
            "penstock_rollout_turn_seconds",
            "What one turn of the controller took, over all rollouts",
            buckets=_LATENCY_BUCKETS,
            registry=registry,
        )

    def show(self, under_way: Iterable[tuple[str, str, str]]) -> None:
        """These rollouts (id, model, state), and no others, are under way."""
        self._state.clear()
        for _, model, state in under_way:
            self._state.labels(model, state).set(1)


class ControlMetrics:
    """The metrics of one control process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.house = HouseMetrics(self.registry)
        self.rollouts = RolloutMetrics(self.registry)
        self.webhook_attempts = Counter(
            "penstock_webhook_attempts", "Attempts to deliver a webhook", ("result",), registry=self.registry
        )
        self.webhook_seconds = Histogram(
            "penstock_webhook_attempt_seconds",
            "What an attempt took",
            buckets=_LATENCY_BUCKETS,
            registry=self.registry,
        )
        self.retention_deleted = Counter(
            "penstock_retention_deleted",
            "What was deleted because it was past its time",
            ("kind",),
            registry=self.registry,
        )


class MetricsServer:
    """Serves a registry at `http://host:port/metrics`, in a thread, until it is closed."""

    def __init__(self, registry: CollectorRegistry, host: str, port: int) -> None:
        """Raises OSError when the address cannot be listened on. Port 0 is any free one."""
        self._server, self._thread = start_http_server(port, host, registry)
        self.port: int = self._server.server_port

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def serve_metrics(registry: CollectorRegistry, host: str, port: int | None, variable: str) -> MetricsServer | None:
    """Serve the registry where the setting `variable` gives a port. Raises `SettingsError` when that cannot be."""
    if port is None:
        return None
    try:
        server = MetricsServer(registry, host, port)
    except OSError as error:
        reason = error.strerror or str(error)
        raise SettingsError(f"{variable}: cannot listen on {host}:{port}: {reason}") from None
    log.info("metrics.serving", host=host, port=server.port)
    return server


@dataclass(frozen=True, slots=True)
class _Waiting:
    """Jobs of one deployment and class that wait. `oldest_seconds` is 0 when none does."""

    count: int = 0
    oldest_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _Queue:
    """One deployment's jobs."""

    labels: tuple[str, str, str]
    waiting: dict[JobClass, _Waiting]
    running: int
    free_slots: int


class _DatabaseCollector(Collector):
    """Reads the database when Prometheus asks, what waits there at most every `KEPT_SECONDS`.

    While it is down, `penstock_database_up` says so and the rest is left out.
    """

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._found = Recent(self._read, KEPT_SECONDS, clock)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        up = GaugeMetricFamily("penstock_database_up", "Whether the database answers")
        try:
            self._database.ping()
            families = self._found.get()
        except SQLAlchemyError as error:
            log.warning("metrics.database_unavailable", error=type(error).__name__)
            families = []
        up.add_metric([], float(bool(families)))
        yield up
        yield from families

    def _read(self) -> list[GaugeMetricFamily]:
        with self._database.transaction() as session:
            queues, outbox = _queue_families(_queues(session)), _outbox_families(session)
            return [*queues, *outbox, _claims_family(session), _rollout_family(session)]


def _queue_families(queues: list[_Queue]) -> list[GaugeMetricFamily]:
    classes = (*_DEPLOYMENT_LABELS, "class")
    waiting = GaugeMetricFamily("penstock_jobs_waiting", "Jobs that wait", labels=classes)
    oldest = GaugeMetricFamily(
        "penstock_oldest_waiting_seconds", "Age of the job that has waited longest", labels=classes
    )
    running = GaugeMetricFamily("penstock_jobs_running", "Jobs that run", labels=_DEPLOYMENT_LABELS)
    free = GaugeMetricFamily("penstock_free_slots", "Jobs that live workers could take now", labels=_DEPLOYMENT_LABELS)
    for queue in queues:
        running.add_metric(queue.labels, queue.running)
        free.add_metric(queue.labels, queue.free_slots)
        for job_class in _CLASSES:
            found = queue.waiting.get(job_class, _Waiting())
            waiting.add_metric((*queue.labels, job_class.name.lower()), found.count)
            oldest.add_metric((*queue.labels, job_class.name.lower()), found.oldest_seconds)
    return [waiting, oldest, running, free]


def _queues(session: Session) -> list[_Queue]:
    free: dict[str, int] = {}
    for hosting in live_hostings(session):
        free[hosting.deployment_id] = free.get(hosting.deployment_id, 0) + hosting.free_slots
    waiting: dict[str, dict[JobClass, _Waiting]] = {}
    age = func.greatest(func.extract("epoch", func.now() - func.min(Job.queued_at)), 0)
    for deployment_id, job_class, count, oldest in session.execute(
        select(Job.deployment_id, Job.job_class, func.count(), age)
        .where(Job.state == JobState.QUEUED)
        .group_by(Job.deployment_id, Job.job_class)
    ):
        waiting.setdefault(deployment_id, {})[JobClass(job_class)] = _Waiting(count, float(oldest))
    running_by_deployment = (
        select(Job.deployment_id, func.count()).where(Job.state == JobState.RUNNING).group_by(Job.deployment_id)
    )
    running = {row[0]: row[1] for row in session.execute(running_by_deployment)}
    deployments = session.scalars(select(Deployment).where(Deployment.state != "retired").order_by(Deployment.id))
    return [
        _Queue(
            (deployment.model_name, deployment.model_version, deployment.id),
            waiting.get(deployment.id, {}),
            running.get(deployment.id, 0),
            free.get(deployment.id, 0),
        )
        for deployment in deployments
    ]


def _claims_family(session: Session) -> GaugeMetricFamily:
    """Since when each live worker has claimed nothing; from its start for one that never has."""
    family = GaugeMetricFamily(
        "penstock_worker_seconds_since_claim", "Since the worker last claimed a job", labels=("worker",)
    )
    age = func.extract("epoch", func.now() - func.coalesce(Worker.last_claim_at, Worker.started_at))
    for worker_id, seconds in session.execute(select(Worker.id, age).order_by(Worker.id)):
        family.add_metric((worker_id,), max(float(seconds), 0.0))
    return family


def _rollout_family(session: Session) -> GaugeMetricFamily:
    """How many units each arm has had in its stage, of rollouts that are under way."""
    family = GaugeMetricFamily(
        "penstock_rollout_units", "Jobs, or users, assigned in a rollout's stage", labels=("model", "arm")
    )
    stands = (GateResult.rollout_id == Rollout.id) & (GateResult.state == Rollout.state)
    evidence = select(Rollout.model_name, GateResult.evidence["units"]["splits"]).join(
        GateResult, stands & (GateResult.step == Rollout.step)
    )
    for model, splits in session.execute(evidence.where(Rollout.state.in_(("canary", "ab"))).order_by(Rollout.id)):
        for arm in ("champion", "candidate"):
            family.add_metric((model, arm), sum(split[arm] for split in splits or ()))
    return family


def _outbox_families(session: Session) -> list[GaugeMetricFamily]:
    age_of_first = func.extract("epoch", func.now() - func.min(OutboxMessage.created_at))
    row: Any = session.execute(select(func.count(), func.coalesce(age_of_first, 0)).select_from(OutboxMessage)).one()
    count, age = int(row[0]), max(float(row[1]), 0.0)
    messages = GaugeMetricFamily("penstock_outbox_messages", "Messages that no relay has passed on yet", value=count)
    oldest = GaugeMetricFamily("penstock_outbox_oldest_seconds", "Age of the oldest of them", value=age)
    return [messages, oldest]
