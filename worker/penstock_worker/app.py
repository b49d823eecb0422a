"""The worker process: every part made, put together, started, and ended in order.

main thread     Celery's consumer: doorbells to pool threads (`serving`)
journal         all new entries to Redis
heartbeat       leases, cancels, checkpoints, the tables `worker` and `hosting`
hosting         what should be loaded; a thread for each model, and its engine's process
files           jobs that quantize and evaluate, each in a process of its own
housekeeping    outbox relay, sweeper, reaper
consumption     whether jobs are still being claimed; where not, the worker hands back what it holds and ends
stopping        SIGTERM: drain, hand back, end
"""

import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from penstock.ids import new_id
from penstock.jobs.housekeeping import Housekeeper
from penstock.jobs.journal import Journal
from penstock.logs import get_logger
from penstock.metrics import serve_metrics
from penstock.registry.hosting_services import WorkerCard, register_worker, remove_worker
from penstock.settings import Settings, variable_name
from penstock.tracing import make_tracing

from penstock_worker.connections import Connections
from penstock_worker.consumption import ConsumptionWatch
from penstock_worker.doorbells import Doorbells
from penstock_worker.engine_process import ENGINE_PROGRAM
from penstock_worker.file_lane import FileLane
from penstock_worker.heartbeat import Heartbeat
from penstock_worker.held import HeldJobs
from penstock_worker.hosting import Host, models_of, split_names
from penstock_worker.journal_writer import JournalWriter
from penstock_worker.patience import DATABASE_OUTAGE, GaveUp, until_done
from penstock_worker.results import Results
from penstock_worker.serving import STOPPING, Serving
from penstock_worker.stopping import StopSignals
from penstock_worker.tasks import make_controller, register_serve, request_shutdown
from penstock_worker.way import Way
from penstock_worker.worker_metrics import WorkerMetrics

STALLED_EXIT_CODE: Final = 75
"""What a worker ends with that took no jobs any more, so that its supervisor starts another."""
DRAINED_EXIT_CODE: Final = 76
"""What a worker ends with that an operator had drained, so that its supervisor starts another."""
_HAND_BACK_SECONDS: Final = 5.0
"""How long handing back may take when PostgreSQL does not answer; the reaper does it otherwise."""

log = get_logger(__name__)


def run_worker(settings: Settings, program: Sequence[str] = ENGINE_PROGRAM) -> int:
    """Run a worker in this process until it is told to stop; returns its exit code. Only in the main thread.

    `program` is what Python runs as its engines: another that speaks `messages` may take the engine's place.
    """
    signals = StopSignals().install()
    return WorkerProcess(settings, signals, program).run()


def _card_of(settings: Settings) -> WorkerCard:
    return WorkerCard(
        new_id("wrk"),
        socket.gethostname(),
        os.getpid(),
        settings.worker_device,
        settings.worker_slots,
        settings.compressions,
        split_names(settings.worker_labels),
        models_of(settings),
    )


class WorkerProcess:
    """All parts of one worker."""

    def __init__(self, settings: Settings, signals: StopSignals, program: Sequence[str] = ENGINE_PROGRAM) -> None:
        self._settings = settings
        self._signals = signals
        self._exit_code = 0
        self._stopped = threading.Event()  # the threads that serve jobs may end
        self._impatient = threading.Event()  # nobody waits for PostgreSQL any more
        self._card = _card_of(settings)
        self._connections = Connections(settings)
        self._redis, self._celery = self._connections.redis, self._connections.celery
        self._own_database = self._connections.own_database
        self._metrics = WorkerMetrics()
        self._metrics_server = serve_metrics(
            self._metrics.registry,
            settings.metrics_host,
            settings.worker_metrics_port,
            variable_name("worker_metrics_port"),
        )
        self._tracing = make_tracing(settings, "worker")
        self._held = HeldJobs()
        self._doorbells = Doorbells(self._celery)
        self._journal = Journal(self._redis, self._card.id)
        self._writer = JournalWriter(
            self._journal,
            linger_seconds=settings.journal_linger_seconds,
            fenced=self._metrics.fenced.labels("journal").inc,
        )
        self._heartbeat = Heartbeat(
            settings, self._card, self._own_database, self._held, self._writer, drain=self._end_as_asked
        )
        self._host = self._make_host(program)
        self._consumption = self._make_consumption()
        self._serving = self._make_serving()
        self._files = FileLane(settings, self._card.id, self._own_database, self._journal)
        self._housekeeper = Housekeeper(self._own_database, self._redis, self._celery, settings, self._metrics.house)

    def _make_host(self, program: Sequence[str]) -> Host:
        return Host(
            self._card.id,
            self._settings,
            self._own_database,
            self._writer,
            self._doorbells,
            changed=self._heartbeat.wake,
            metrics=self._metrics,
            program=program,
        )

    def _make_consumption(self) -> ConsumptionWatch:
        return ConsumptionWatch(
            self._own_database,
            self._redis,
            self._host.open_deployments,
            self._restart,
            stall_seconds=self._settings.consumption_stall_seconds,
        )

    def _make_serving(self) -> Serving:
        database, settings = self._connections.database, self._settings
        return Serving(
            worker_id=self._card.id,
            database=database,
            journal=self._journal,
            writer=self._writer,
            held=self._held,
            results=Results(database, self._writer, self._impatient, max_own_crashes=settings.max_own_crashes),
            ready_servers=self._host.ready_servers,
            lease_seconds=settings.lease_seconds,
            looked=self._note_look,
            tracing=self._tracing,
            way=Way(self._held, self._writer, settings.worker_slots),
        )

    def run(self) -> int:
        """Serve until a signal says stop; leave no process, lease or row behind. Returns the exit code."""
        self._start("stopping", self._await_signals)
        try:
            until_done(self._register, stop=self._impatient, what="worker.register")
        except GaveUp:
            return 1
        log.info("worker.started", worker=self._card.id, slots=self._card.slots)
        parts = [
            self._start("journal", lambda: self._writer.run(self._stopped)),
            self._start("heartbeat", lambda: self._heartbeat.run(self._host, self._stopped)),
            self._start("hosting", lambda: self._host.run(self._stopped)),
            self._start("housekeeping", lambda: self._housekeeper.run(self._stopped)),
            self._start("consumption", lambda: self._consumption.run(self._stopped)),
            *(self._start(f"files-{number}", self._files.run) for number in range(self._settings.compressions)),
        ]
        exit_code = self._consume()
        self._host.close()
        self._stopped.set()
        self._heartbeat.wake()
        for part in parts:
            part.join()
        self._leave()
        return exit_code or self._exit_code

    def _register(self) -> None:
        with self._own_database.transaction() as session:
            register_worker(session, self._card)

    def _consume(self) -> int:
        """Answer doorbells until shutdown is requested and every pool thread has returned."""
        register_serve(self._celery, self._serving.answer)
        controller = make_controller(
            self._celery, worker_id=self._card.id, slots=self._card.slots, closing=self._begin_drain
        )
        controller.start()
        return controller.exitcode or 0

    def _await_signals(self) -> None:
        """The first signal lets running jobs finish for a while, the second hands them back at once."""
        self._signals.wait()
        self._begin_drain()
        request_shutdown()
        self._doorbells.wake()
        self._signals.wait()
        self._hand_back()

    def _end_as_asked(self) -> None:
        """An operator wants this worker to end: as at the first signal, but so that another is started."""
        log.info("worker.drain_requested", worker=self._card.id)
        self._exit_code = DRAINED_EXIT_CODE
        self._begin_drain()
        request_shutdown()
        self._doorbells.wake()

    def _begin_drain(self) -> None:
        """Take no new job."""
        if self._serving.closing.is_set():
            return
        self._serving.closing.set()
        self._files.close()
        log.info("worker.stopping", jobs=len(self._held), drain_seconds=self._settings.worker_drain_seconds)
        self._heartbeat.draining = True
        self._heartbeat.wake()
        self._start("drain", self._drain)

    def _drain(self) -> None:
        deadline = time.monotonic() + self._settings.worker_drain_seconds
        while len(self._held) and time.monotonic() < deadline:
            time.sleep(0.05)
        self._hand_back()

    def _note_look(self, claimed: bool) -> None:
        """Somebody answered a doorbell; the heartbeat tells others when a job was claimed."""
        self._consumption.note_claim()
        if claimed:
            self._metrics.claimed()
            self._heartbeat.note_claim()

    def _restart(self, idle_seconds: float) -> None:
        """Claims have stalled: hand back what is held and end at once; the consumer may be past hearing a request."""
        self._metrics.stalled()
        log.error("worker.restarting", reason=f"nothing was claimed for {idle_seconds:.0f} s while jobs waited")
        self._begin_drain()
        self._drain()
        self._remove_row()
        os._exit(STALLED_EXIT_CODE)

    def _hand_back(self) -> None:
        """Give what is unfinished back to the queue; the next holder goes on at the exact token."""
        self._serving.handing_back.set()
        for job, _ in self._held.snapshot():
            if job.end(STOPPING):
                self._writer.mark(job)
        deadline = time.monotonic() + _HAND_BACK_SECONDS
        while len(self._held) and time.monotonic() < deadline:
            time.sleep(0.05)
        self._impatient.set()
        self._files.give_up()

    def _leave(self) -> None:
        """Take our row away and close what is open."""
        self._remove_row()
        self._tracing.close()
        if self._metrics_server is not None:
            self._metrics_server.close()
        self._connections.close()
        log.info("worker.stopped", worker=self._card.id)

    def _remove_row(self) -> None:
        try:
            with self._own_database.transaction() as session:
                remove_worker(session, self._card.id)
        except DATABASE_OUTAGE as error:
            log.warning("database.unreachable", what="worker.leave", error=type(error).__name__)

    def _start(self, name: str, work: Callable[[], None]) -> threading.Thread:
        """Run a part in a thread. No part can do without the others: should one fail, the worker is as good as dead.

        Then it ends at once: its engines end with it, and the reaper gives its jobs to others.
        """

        def guarded() -> None:
            try:
                work()
            except Exception:
                log.exception("worker.part_failed", part=name)
                os._exit(1)

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        thread.start()
        return thread
