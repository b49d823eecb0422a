"""The control process: attempts webhooks, keeps house, and follows the registry's aliases.

A Celery worker with a few threads takes what the relays ring for; beside it run the housekeeper (relay, sweeper,
reaper), what tends batches and retention and, where MLflow is configured, the synchroniser. SIGTERM lets attempts in
flight end, then stops all of them.
"""

import logging
import os
import signal
import socket
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from celery import Celery
from celery.platforms import SecurityWarning
from celery.signals import setup_logging

from penstock.batches.tending import BatchTender
from penstock.batches.workshop import Workshop
from penstock.broker import CONTROL_QUEUE, make_celery, make_redis
from penstock.bulk.tending import BulkTender
from penstock.bulk.work import JOB_WORKS
from penstock.compressions.publishing import Publisher
from penstock.db import Database
from penstock.dead_letters.work import LETTER_WORKS
from penstock.jobs.housekeeping import Housekeeper
from penstock.logs import get_logger
from penstock.metrics import ControlMetrics, serve_metrics
from penstock.registry.hints import Hints
from penstock.registry.mlflow_sync import Synchroniser
from penstock.replay.tending import ReplayTender
from penstock.retention.sweeping import RetentionSweeper
from penstock.rollouts.controller import Controller
from penstock.rollups.keeping import RollupKeeper
from penstock.settings import Settings, variable_name
from penstock.tracing import make_tracing
from penstock.webhooks import tasks as webhook_tasks

CONCURRENCY: Final = 8
_JOIN_SECONDS: Final = 10.0
Run = Callable[[threading.Event], None]
log = get_logger(__name__)


def run_control(settings: Settings) -> int:
    """Run the control process until it is told to end; returns its exit status."""
    metrics = ControlMetrics()
    metrics_server = serve_metrics(
        metrics.registry, settings.metrics_host, settings.control_metrics_port, variable_name("control_metrics_port")
    )
    database, redis, app = Database(settings), make_redis(settings), make_celery(settings)
    tracing = make_tracing(settings, "control")
    webhook_tasks.register(app, database, settings, metrics, tracing)
    companions = Companions()
    companions.start("housekeeper", Housekeeper(database, redis, app, settings, metrics.house).run)
    workshop = Workshop.open(settings, database, redis)
    companions.start("batches", BatchTender(workshop).run)
    companions.start("bulk", BulkTender(workshop, {**JOB_WORKS, **LETTER_WORKS}).run)
    companions.start("replays", ReplayTender(database, sweep_seconds=settings.sweep_seconds).run)
    companions.start("retention", RetentionSweeper(database, redis, settings, metrics).run)
    companions.start("rollups", RollupKeeper(database).run)
    companions.start("rollouts", Controller(database, metrics.rollouts).run)
    if settings.mlflow_tracking_uri is not None:
        companions.start("publisher", Publisher(database, settings).run)
        companions.start("synchroniser", Synchroniser(database, settings, Hints(redis)).run)
    log.info("control.started", concurrency=CONCURRENCY, companions=companions.names)
    try:
        exit_code = serve(app)
    finally:
        companions.stop()
        tracing.close()
        if metrics_server is not None:
            metrics_server.close()
        redis.close()
        database.close()
    log.info("control.stopped")
    return 1 if companions.failed else exit_code


def serve(app: Celery) -> int:
    """Take tasks from the control queue until SIGTERM or SIGINT; returns the worker's exit status."""
    # A receiver of this signal keeps Celery from replacing the process's log handlers.
    setup_logging.connect(_keep_logging, weak=False)
    # Celery warns of root for fear of pickled messages; ours are JSON alone.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    # Celery's two lines about every message and httpx's about every request say less than ours.
    for name in ("celery.worker.strategy", "celery.app.trace", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)
    worker = app.Worker(
        hostname=f"control-{os.getpid()}@{socket.gethostname()}",
        pool="threads",
        concurrency=CONCURRENCY,
        queues=[CONTROL_QUEUE],
        without_gossip=True,
        without_mingle=True,
        task_events=False,
        quiet=True,
    )
    worker.start()
    return int(worker.exitcode or 0)


@dataclass(slots=True)
class Companions:
    """The threads beside the worker. One that ends before it was told to ends the process, which is started anew."""

    failed: bool = False
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        return [thread.name for thread in self._threads]

    def start(self, name: str, run: Run) -> None:
        """Run it in a thread until `stop`."""
        thread = threading.Thread(target=self._guarded, args=(name, run), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def stop(self) -> None:
        """Tell all of them to end, and wait for each a while."""
        self._stop.set()
        for thread in self._threads:
            thread.join(_JOIN_SECONDS)
            if thread.is_alive():
                log.warning("control.companion_left_behind", companion=thread.name)

    def _guarded(self, name: str, run: Run) -> None:
        try:
            run(self._stop)
        except Exception:
            log.exception("control.companion_failed", companion=name)
            self.failed = True
        if not self._stop.is_set():
            self.failed = True
            os.kill(os.getpid(), signal.SIGTERM)


def _keep_logging(**_: Any) -> None:
    """Our handlers stay as `configure_logs` made them."""
