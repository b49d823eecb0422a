"""Answering a doorbell: claim a job, run it, claim again, until nothing waits or no engine has a free place."""

import threading
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from penstock.db import Database
from penstock.errors import LeaseLost, PenstockError
from penstock.jobs import lease
from penstock.jobs.journal import Journal, JournalEntry
from penstock.jobs.models import JobRun
from penstock.jobs.states import JobState, RunOutcome
from penstock.logs import get_logger
from penstock.registry.tokenizer import ModelTokenizer
from penstock.tracing import Tracing, traced_logs
from penstock.usage.accounting import CHARGED
from redis.exceptions import RedisError
from sqlalchemy import select, update

from penstock_worker.bridge import Bridge
from penstock_worker.claims import Claims
from penstock_worker.held import HeldJobs
from penstock_worker.journal_writer import JournalWriter
from penstock_worker.messages import Submit
from penstock_worker.patience import DATABASE_OUTAGE
from penstock_worker.requests import request_of
from penstock_worker.results import Results
from penstock_worker.run_trace import trace_run
from penstock_worker.running import Finished, GivenBack, Lost, RunningJob
from penstock_worker.way import Way

STOPPING: Final = GivenBack(RunOutcome.HANDED_BACK, "the worker is stopping")

log = get_logger(__name__)


class Server(Protocol):
    """A deployment that is ready to run jobs: `bridge` and `tokenizer` are those of the engine that runs now."""

    @property
    def deployment_id(self) -> str: ...

    @property
    def bridge(self) -> Bridge: ...

    @property
    def tokenizer(self) -> ModelTokenizer: ...

    def note_finished(self) -> None:
        """A job ended without harm to the engine."""


class Serving:
    """What the Celery task does. Any number of pool threads answer at once; each holds one job at a time.

    `looked` is called whenever the queue was looked into, with whether a job was claimed. Once `closing` is set nothing
    more is claimed; once `handing_back` is, whatever was claimed goes back. `way` is what shadow jobs make.
    """

    def __init__(
        self,
        *,
        worker_id: str,
        database: Database,
        journal: Journal,
        writer: JournalWriter,
        held: HeldJobs,
        results: Results,
        ready_servers: Callable[[], Sequence[Server]],
        lease_seconds: float,
        looked: Callable[[bool], None] = lambda _: None,
        tracing: Tracing | None = None,
        way: Way | None = None,
    ) -> None:
        self._worker_id = worker_id
        self._database = database
        self._journal = journal
        self._writer = writer
        self._held = held
        self._results = results
        self._ready_servers = ready_servers
        self._lease_seconds = lease_seconds
        self._looked = looked
        self._tracing = tracing or Tracing("worker")
        self._way = way
        self._claims: dict[str, Claims] = {}  # by deployment
        self._lock = threading.Lock()
        self.closing = threading.Event()
        self.handing_back = threading.Event()

    def answer(self, deployment_id: str) -> None:
        """Run jobs of the deployment, and then of every other in turn, so that none has all the threads for itself."""
        turn: str | None = deployment_id
        try:
            while turn is not None and not self.closing.is_set():
                turn = self._serve_next(turn)
        except DATABASE_OUTAGE as error:
            log.warning("database.unreachable", what="lease.claim", error=type(error).__name__)

    def _serve_next(self, turn: str) -> str | None:
        """Run one job, of the first server from `turn` on that has one. Returns whose turn is next, or None."""
        servers = sorted(self._ready_servers(), key=lambda server: server.deployment_id)
        at = bisect_left([server.deployment_id for server in servers], turn)
        for server in servers[at:] + servers[:at]:
            if (claim := self._claim(server)) is not None:
                self._run(*claim, server)
                return server.deployment_id + "\x00"  # sorts right after it
        return None

    def _claim(self, server: Server) -> tuple[RunningJob, list[JournalEntry]] | None:
        """The next waiting job, with a place in the engine reserved for it, and its checkpoint."""
        if not server.bridge.reserve():
            return None
        claimed = None
        try:
            claimed = self._claims_of(server.deployment_id).next()
        finally:
            if claimed is None:
                server.bridge.release()
        self._looked(claimed is not None)
        if claimed is None:
            return None
        claim, begun = claimed
        job = RunningJob(claim, claimed_at=begun, lease_until=begun + self._lease_seconds)
        return job, claim.checkpoint

    def _claims_of(self, deployment_id: str) -> Claims:
        with self._lock:
            if deployment_id not in self._claims:
                self._claims[deployment_id] = Claims(
                    self._database,
                    worker_id=self._worker_id,
                    deployment_id=deployment_id,
                    lease_seconds=self._lease_seconds,
                    shadow_room=self._way.room if self._way is not None else lambda: None,
                )
            return self._claims[deployment_id]

    def _run(self, job: RunningJob, checkpoint: list[JournalEntry], server: Server) -> None:
        """Hold the job from its claim to its end, and write the end down."""
        bridge = server.bridge
        with traced_logs(job.job.traceparent), self._held.holding(job, bridge):
            if self.handing_back.is_set():  # it was claimed too late to be seen among the held
                job.end(STOPPING)
            if self._way is not None:
                self._way.make()
            self._writer.announce(job.id)
            request = self._prepare(job, checkpoint, server.tokenizer)
            if request is None:
                bridge.release()
            elif not bridge.submit(job, request):
                job.end(GivenBack(RunOutcome.HANDED_BACK, "the engine is being restarted"))
            if job.ending is not None:
                self._writer.mark(job)
            job.settled.wait()
            bridge.abort(job)
            self._results.write(job, bridge.metrics)
            trace_run(self._tracing, job, device=bridge.device)
        if isinstance(job.ending, Finished):
            server.note_finished()

    def _prepare(self, job: RunningJob, checkpoint: list[JournalEntry], tokenizer: ModelTokenizer) -> Submit | None:
        """What to ask of the engine. None when the run has ended already: one job's fault is its own."""
        try:
            self._restore(job, checkpoint, tokenizer)
            if job.job.cancel_requested_at is not None:
                job.end(Finished(JobState.CANCELLED), "cancelled")
            return request_of(job) if job.ending is None else None
        except LeaseLost:
            log.warning("lease.lost", job=job.id, fence=job.fence)
            job.end(Lost())
        except PenstockError as error:
            job.end(Finished(JobState.FAILED, {"code": error.code, "message": error.message}))
        except RedisError as error:
            job.end(GivenBack(RunOutcome.HANDED_BACK, f"Redis does not answer ({type(error).__name__})"))
        except DATABASE_OUTAGE as error:
            job.end(GivenBack(RunOutcome.HANDED_BACK, f"PostgreSQL does not answer ({type(error).__name__})"))
        except Exception as error:
            log.exception("job.preparation_failed", job=job.id)
            message = f"the worker could not prepare the job: {type(error).__name__}"
            job.end(Finished(JobState.FAILED, {"code": "internal_error", "message": message}))
        return None

    def _restore(self, job: RunningJob, checkpoint: list[JournalEntry], tokenizer: ModelTokenizer) -> None:
        """Shut earlier holders out and take over what they journalled: the longer of Redis and PostgreSQL.

        What is void they generated with another version, before the job was sent to this one.
        """
        prompt_ids = tokenizer.encode_input(job.job.input, job.job.params.get("tools", ()))
        opened = self._journal.open(job.id, job.fence)
        valid = [entry for entry in opened.entries if entry.fence > job.job.void_to]
        behind = len(valid) < len(checkpoint)
        entries = checkpoint if behind else valid
        if behind or len(valid) < len(opened.entries):
            self._journal.rewrite(job.id, job.fence, entries)
        job.restore(entries, tokenizer, prompt_ids)
        job.journalled, job.checkpointed = len(entries), len(checkpoint)
        if job.job.runs > 1:
            self._note_resumption(job, journal_lost=behind or not opened.known)

    def _note_resumption(self, job: RunningJob, *, journal_lost: bool) -> None:
        """Record where the run goes on; when tokens may have been sent that nobody has any more, tell the
        readers.

        A holder that gave the job back left every token in PostgreSQL; one that fell silent may have sent
        later ones.
        """
        position = len(job.entries)
        with self._database.transaction() as session:
            session.execute(
                update(JobRun)
                .where(JobRun.job_id == job.id, JobRun.fence == job.fence)
                .values(resumed_at_position=position)
            )
            runs = session.scalars(select(JobRun).where(JobRun.job_id == job.id)).all()
            job.meter.follow([run.spent for run in runs if run.outcome in CHARGED], position=position)
            previous = next((run.outcome for run in runs if run.fence == job.fence - 1), None)
            begins_anew = job.fence - 1 == job.job.void_to
            if begins_anew or (journal_lost and previous == RunOutcome.LEASE_LOST):
                lease.note_rewind(session, job.held, position)
        log.info("job.resumed", job=job.id, fence=job.fence, position=position)
