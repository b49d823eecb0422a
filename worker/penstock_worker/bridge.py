"""The worker's end of one engine process: starts it, sends it requests, and gives its tokens to the jobs.

One thread owns the process: it calls `start`, then `read` until that returns how the process ended. Linux
ties the process to that very thread. A writer thread puts all that was asked since its last message into the
next one.

    pool threads   reserve ──▶ submit ──▶ writer ──▶ ┌────────────────┐
    heartbeat      abort, ping, pause ──▶ writer ──▶ │ engine process │
    journal writer ◀── jobs' entries ◀── reader  ◀── └────────────────┘
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
from penstock.jobs.states import JobState

from penstock_worker.answers import by_request, give, refuse
from penstock_worker.energy import EnergyMeter, energy_meter
from penstock_worker.engine_child import EngineChild
from penstock_worker.engine_process import ENGINE_PROGRAM
from penstock_worker.journal_writer import JournalWriter
from penstock_worker.messages import (
    Commands,
    EngineSpec,
    FromEngine,
    Grant,
    Loading,
    Needs,
    Ready,
    Share,
    StepReport,
    Submit,
)
from penstock_worker.running import Finished, RunningJob
from penstock_worker.worker_metrics import EngineMetrics, WorkerMetrics

_PING_SECONDS: Final = 1.0
_STACKS_SECONDS: Final = 0.5


def _as_set(needs: Needs) -> int | None:
    return needs.kv


class Bridge:
    """One engine process. `places` is how many jobs it may hold at once, which may be lowered while it runs.

    `grant` answers an engine that asks for memory; what it raises `start` raises, once the process has ended.
    """

    def __init__(
        self,
        spec: EngineSpec,
        writer: JournalWriter,
        *,
        places: int,
        stall_seconds: float,
        metrics: EngineMetrics | None = None,
        meter_of: Callable[[str, str | None], EnergyMeter] = energy_meter,
        program: Sequence[str] = ENGINE_PROGRAM,
        grant: Callable[[Needs], int | None] = _as_set,
    ) -> None:
        self.places = places
        self.weight_bytes = 0
        self._kv_bytes = self._page_bytes = 0
        self._grant = grant
        self.metrics = metrics or WorkerMetrics().of("", "", spec.name)
        self.progress = 0.0
        self.ready = False
        self.device = spec.device
        self.stats: dict[str, int | float] = {}
        self._spec = spec
        self._child = EngineChild(program)
        self._meter_of = meter_of
        self._energy = EnergyMeter(None, "the engine has not started")
        self._journal_writer = writer
        self._stall_seconds = stall_seconds
        self._jobs: dict[str, RunningJob] = {}
        self._lock = threading.Lock()
        self._to_send = threading.Condition(self._lock)
        self._commands = Commands()
        self._unsent = False
        self._closed = False
        self._reserved = 0
        self._submitted = 0
        self._report = StepReport(0, 0, 0)
        self._ping = 0
        self._paused = False
        self._heard_at = self._progressed_at = self._pinged_at = time.monotonic()
        self._stacks_asked_at: float | None = None

    # The process: called by the thread that owns it

    def start(self) -> None:
        """Start the process and wait until it is ready. Raises EngineFailed."""
        self._child.start(self._spec)
        while not isinstance(message := self._receive(), Ready):
            if message is None:
                raise self._child.failure()
            if isinstance(message, Needs):
                self._answer(message)
            self._take(message)
        self._energy = self._meter_of(message.device, message.device_uuid)
        self.device, self.ready = message.device, True
        self.weight_bytes, self._kv_bytes = message.weight_bytes, message.kv_bytes
        self._report = StepReport(0, 0, message.free_slots)
        self._progressed_at = time.monotonic()
        threading.Thread(target=self._write, name="bridge-writer", daemon=True).start()

    def _answer(self, needs: Needs) -> None:
        self._page_bytes = needs.page
        try:
            granted = self._grant(needs)
        except Exception:
            self._child.kill("it was refused its memory")
            self._child.how_it_ended()
            raise
        self._child.send(Grant(granted))

    def read(self) -> str:
        """Give every message to the jobs until the process ends; returns how it ended."""
        while (message := self._receive()) is not None:
            self._take(message)
        with self._lock:
            self._closed = True
            self._to_send.notify()
        return self._child.how_it_ended()

    def _receive(self) -> FromEngine | None:
        """The next message; None once the process has gone."""
        if (message := self._child.receive()) is not None:
            self._heard_at = time.monotonic()
        return message

    def _take(self, message: FromEngine) -> None:
        match message:
            case StepReport():
                self._take_report(message)
            case Loading():
                self.progress = message.progress

    def _take_report(self, report: StepReport) -> None:
        if report.step != self._report.step:
            self._progressed_at = self._heard_at
        self.stats = report.stats or self.stats
        self.metrics.take(report)
        for request_id, cached_tokens in report.admitted:
            if (job := self._jobs.get(request_id)) is not None:
                job.meter.cached_tokens = cached_tokens
        touched = self._give_to_jobs(report)
        with self._lock:
            self._report = report
            for request_id, job in touched.items():
                if job.ending is not None:
                    self._jobs.pop(request_id, None)
        if touched:
            self._journal_writer.mark(*touched.values())

    def _give_to_jobs(self, report: StepReport) -> dict[str, RunningJob]:
        """Tell each job what the report has for it; returns those that heard something."""
        touched: dict[str, RunningJob] = {}

        def job_of(request_id: str) -> RunningJob | None:
            if (job := self._jobs.get(request_id)) is not None:
                touched[request_id] = job
            return job

        for share in report.shares:
            self._meter(share, report)
        for scores in report.prompt_scores:
            if (job := job_of(scores.request_id)) is not None:
                job.take_prompt(scores)
        for request_id, deltas in by_request(report.deltas):
            if (job := job_of(request_id)) is not None:
                self._note_token(job, report)
                self._cut(job, give(job, deltas))
        for share in report.shares:
            if (job := self._jobs.get(share.request_id)) is not None and job.limit_reached:
                touched[share.request_id] = job
                self._stop_at_limit(job)
        for ended in report.ended:
            if (job := job_of(ended.request_id)) is not None:
                job.close_choice(ended.choice, ended.finish_reason)
        for refusal in report.refusals:
            if (job := job_of(refusal.request_id)) is not None:
                refuse(job, refusal)
        return touched

    def _meter(self, share: Share, report: StepReport) -> None:
        """Note what a job had of the step, in time and in energy."""
        joules = self._energy.joules(share.seconds)
        if (job := self._jobs.get(share.request_id)) is not None:
            job.meter.take(share, report, joules, self._energy.reason)
        else:
            self.metrics.note_dropped(share.seconds)

    def _stop_at_limit(self, job: RunningJob) -> None:
        """The job has cost what it may: what there is of its output is the output."""
        job.end(Finished(JobState.SUCCEEDED), "length")
        self.abort(job)

    def _note_token(self, job: RunningJob, report: StepReport) -> None:
        before = job.meter.last_token_at
        job.meter.note_token(report.ended_at)
        if before is None:
            self.metrics.note_prompt(len(job.prompt_ids), job.meter.cached_tokens or 0)
        else:
            self.metrics.note_gap(report.ended_at - before)

    def _cut(self, job: RunningJob, choices: Sequence[int]) -> None:
        """These choices ended here, and go on in the engine until it is told."""
        if choices and job.ending is not None:
            self.abort(job)
        elif choices:
            with self._lock:
                self._commands.aborts.extend((job.request_id, choice) for choice in choices)
                self._send_soon()

    # Requests: called by any thread

    @property
    def free_places(self) -> int:
        """How many more jobs the engine can admit now."""
        with self._lock:
            return self._free_places()

    @property
    def busy(self) -> bool:
        """Whether it has jobs, or is about to get one."""
        return bool(self._jobs) or self._reserved > 0

    def reserve(self) -> bool:
        """Take a place for a job that is about to be claimed, until `submit` or `release`. False when none is free."""
        with self._lock:
            if self._closed or self._free_places() <= 0:
                return False
            self._reserved += 1
            return True

    def release(self) -> None:
        """The reserved place is not needed."""
        with self._lock:
            self._reserved -= 1

    def submit(self, job: RunningJob, request: Submit) -> bool:
        """Let the engine run the job in its reserved place. False when the process has gone or the run has ended."""
        with self._lock:
            self._reserved -= 1
            if self._closed or job.ending is not None:
                return False
            if not self._jobs:
                self._progressed_at = time.monotonic()
            self._jobs[request.request_id] = job
            job.meter.submitted_at = time.perf_counter()
            self._submitted += request.places
            self._commands.submits.append(request)
            self._send_soon()
            return True

    def abort(self, job: RunningJob) -> None:
        """Have the engine drop the job, if it has it."""
        with self._lock:
            if self._jobs.pop(job.request_id, None) is not None:
                self._commands.aborts.append((job.request_id, None))
                self._send_soon()

    def pause(self, paused: bool) -> None:
        """Stop generating, or go on."""
        with self._lock:
            if paused != self._paused:
                self._paused = paused
                self._progressed_at = time.monotonic()
                self._send_soon()

    @property
    def kv_bytes(self) -> int:
        """What K and V take of the device, as the engine told last."""
        pages = self.stats.get("pages_total")
        return int(pages + 1) * self._page_bytes if pages is not None and self._page_bytes else self._kv_bytes

    @property
    def pid(self) -> int | None:
        """Of the process, once it has begun."""
        return self._child.pid

    def resize(self, kv_bytes: int) -> None:
        """Have K and V take so many bytes from the end of the step on that runs now."""
        with self._lock:
            self._commands = msgspec.structs.replace(self._commands, kv_bytes=kv_bytes)
            self._send_soon()

    def stop(self) -> None:
        """Ask the process to end; one that still loads is ended."""
        if not self.ready:
            self.kill("it was stopped while it loaded")
        with self._lock:
            self._commands = msgspec.structs.replace(self._commands, stop=True)
            self._send_soon()

    def orphans(self) -> list[RunningJob]:
        """The jobs that the ended process left behind."""
        with self._lock:
            left, self._jobs = list(self._jobs.values()), {}
        return left

    def _free_places(self) -> int:
        unseen = self._submitted - self._report.received
        by_engine = self._report.free_slots - unseen - self._reserved
        return min(by_engine, self.places - len(self._jobs) - self._reserved)

    def _send_soon(self) -> None:
        self._unsent = True
        self._to_send.notify()

    def _write(self) -> None:
        """The writer thread: one message for all that was asked since the last."""
        while (commands := self._next_commands()) is not None:
            if not self._child.send(commands):
                return  # the process has gone; the reader sees it too

    def _next_commands(self) -> Commands | None:
        with self._lock:
            while not self._unsent and not self._closed:
                self._to_send.wait()
            if self._closed:
                return None
            asked, self._commands, self._unsent = self._commands, Commands(), False
            return msgspec.structs.replace(asked, ping=self._ping, paused=self._paused)

    # Watching: called by the heartbeat

    @property
    def lively(self) -> bool:
        """Whether the engine steps while it has work, and answers. Leases live by this."""
        now = time.monotonic()
        unanswered = self._ping != self._report.pong
        if unanswered and now - max(self._heard_at, self._pinged_at) > self._stall_seconds:
            return False
        return self._paused or not self._jobs or now - self._progressed_at <= self._stall_seconds

    def watch(self) -> None:
        """Ping an engine that has been silent for a while; one that stalls writes where it hangs, and soon is killed.

        `read` then reports that.
        """
        now = time.monotonic()
        if not self.lively:
            self._end_stalled(now)
        elif now - self._heard_at > _PING_SECONDS and self._ping == self._report.pong:
            with self._lock:
                self._ping += 1
                self._pinged_at = now
                self._send_soon()

    def _end_stalled(self, now: float) -> None:
        if self._stacks_asked_at is None:
            self._stacks_asked_at = now
            self._child.show_stacks()
        elif now - self._stacks_asked_at >= _STACKS_SECONDS:
            self.kill(f"the engine process took no step for {self._stall_seconds:g} s")

    def kill(self, reason: str) -> None:
        """End the process at once; `read` (or `start`) then says why."""
        self._child.kill(reason)
