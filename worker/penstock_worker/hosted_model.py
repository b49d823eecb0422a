"""One deployment on this worker: verified, loaded, served by one engine process, restarted when that crashes."""

import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from penstock.deployments.placement import HostingMode
from penstock.deployments.services import Wanted
from penstock.errors import ModelFolderInvalid
from penstock.jobs.states import RunOutcome
from penstock.logs import get_logger
from penstock.registry.folder import verify
from penstock.registry.hosting_services import HostingReport, HostingState
from penstock.registry.models import Deployment
from penstock.registry.tokenizer import ModelTokenizer

from penstock_worker.bridge import Bridge
from penstock_worker.device_memory import DoesNotFit
from penstock_worker.energy import EnergyMeter, energy_meter
from penstock_worker.engine_child import EngineFailed
from penstock_worker.engine_process import ENGINE_PROGRAM
from penstock_worker.journal_writer import JournalWriter
from penstock_worker.messages import EngineSpec, Needs
from penstock_worker.room import Room
from penstock_worker.running import GivenBack
from penstock_worker.worker_metrics import EngineMetrics

_RETRY_LOAD_SECONDS: Final = 60.0
_LOOK_SECONDS: Final = 2.0
_FIRST_RESTART_SECONDS, _LONGEST_RESTART_SECONDS = 0.1, 5.0
_STEADY_SECONDS: Final = 60.0
KILL_PAUSES: Final = (0.25, 1.0, 4.0)
"""Seconds until an engine that was killed while it loaded is started again, which is all within `KILLS_SECONDS`."""
KILLS_SECONDS: Final = 600.0
_PAGE_SIZE: Final = os.sysconf("SC_PAGE_SIZE")
_VERIFY_SHARE: Final = 0.2
"""Of the progress of loading, what is hashing."""

log = get_logger(__name__)


class HostedModel:
    """Runs in a thread of its own, which owns the engine process. `changed` is called when others should know
    of the state.

    After a crash with several jobs in the engine at most half as many are let in at once, down to one, so
    that the job at fault ends up alone; every job that ends well opens another place.

    `wanted` is what is wanted of it now. It asks `room` for its memory, and leaves it when its engine has ended.
    """

    def __init__(
        self,
        wanted: Wanted,
        spec: EngineSpec,
        writer: JournalWriter,
        *,
        room: Room,
        stall_seconds: float,
        changed: Callable[[], None],
        metrics: EngineMetrics | None = None,
        meter_of: Callable[[str, str | None], EnergyMeter] = energy_meter,
        program: Sequence[str] = ENGINE_PROGRAM,
    ) -> None:
        self.wanted = wanted
        self.deployment = wanted.deployment
        self._spec = spec
        self._room = room
        self._writer = writer
        self._stall_seconds = stall_seconds
        self._changed = changed
        self._metrics = metrics
        self._meter_of = meter_of
        self._program = program
        self._state = HostingState.LOADING
        self._error: str | None = None
        self._verified = 0.0
        self._bridge: Bridge | None = None
        self._tokenizer: ModelTokenizer | None = None
        self._suspects = spec.max_running
        self._kills: list[float] = []
        self._sizes: dict[str, int | float] = {}
        self._granted_at: float | None = None
        self._waited = 0.0
        self._ready_at = self._used_at = time.monotonic()
        self._unwanted = threading.Event()
        self._thread = threading.Thread(target=self._live, name=f"host-{self.deployment.id}", daemon=True)

    # What others see

    @property
    def deployment_id(self) -> str:
        return self.deployment.id

    @property
    def name(self) -> str:
        return f"{self.deployment.model_name}:{self.deployment.model_version}"

    @property
    def state(self) -> HostingState:
        return HostingState.UNLOADING if self._unwanted.is_set() else self._state

    def serves(self, deployment: Deployment | None) -> bool:
        """Whether this is what is wanted: the same folder with the same files."""
        if deployment is None:
            return False
        return (self.deployment.source, self.deployment.manifest) == (deployment.source, deployment.manifest)

    @property
    def ready(self) -> bool:
        """Whether it takes jobs."""
        return self._state is HostingState.READY and not self._unwanted.is_set()

    @property
    def gone(self) -> bool:
        """Whether nothing is left of it."""
        return self._unwanted.is_set() and not self._thread.is_alive()

    @property
    def bridge(self) -> Bridge:
        """The engine that runs now. Only once it is ready."""
        assert self._bridge is not None
        return self._bridge

    @property
    def tokenizer(self) -> ModelTokenizer:
        """The deployment's tokenizer. Only once it is ready."""
        assert self._tokenizer is not None
        return self._tokenizer

    @property
    def live_bridge(self) -> Bridge | None:
        """The engine, if one is ready: what the heartbeat watches."""
        return self._bridge if self._bridge is not None and self._bridge.ready else None

    @property
    def report(self) -> HostingReport:
        """How it stands, for the `hosting` table."""
        bridge = self.live_bridge
        if bridge is None:
            return HostingReport(self.deployment.id, self.state, progress=self._loading_progress, error=self._error)
        stats = {**bridge.stats, **self._sizes, "kv_bytes": bridge.kv_bytes}
        return HostingReport(self.deployment.id, self.state, max(bridge.free_places, 0), 1.0, self._error, stats)

    @property
    def _loading_progress(self) -> float:
        loaded = self._bridge.progress if self._bridge is not None else 0.0
        return round(_VERIFY_SHARE * self._verified + (1 - _VERIFY_SHARE) * loaded, 2)

    # What the room asks

    @property
    def kv_bytes(self) -> int:
        """What K and V take of the device; 0 while there is no engine."""
        return self._bridge.kv_bytes if self._bridge is not None else 0

    @property
    def makes_way(self) -> bool:
        """Whether it leaves when another needs its memory."""
        return self.wanted.desired.mode is HostingMode.COLD

    @property
    def idle_seconds(self) -> float:
        """Since it last had a job, or became ready; 0 while it is not ready or has one."""
        bridge = self.live_bridge
        if bridge is None or bridge.busy:
            self._used_at = time.monotonic()
        return time.monotonic() - self._used_at

    @property
    def may_leave_now(self) -> bool:
        """Whether nobody waits for it, or it has served for as long as it would have stayed idle."""
        has_served = time.monotonic() - self._ready_at >= self.wanted.desired.idle_seconds
        return self.live_bridge is not None and (has_served or (not self.bridge.busy and not self.wanted.needed))

    def resize(self, kv_bytes: int) -> None:
        """Have the engine take so many bytes for K and V."""
        if (bridge := self.live_bridge) is not None:
            bridge.resize(kv_bytes)

    # What others ask

    def start(self) -> None:
        """Begin loading."""
        self._thread.start()

    def unload(self) -> None:
        """Take no more jobs; end the engine once those in it are done."""
        if not self._unwanted.is_set():
            self._unwanted.set()
            threading.Thread(target=self._end_engine, name=f"unload-{self.deployment.id}", daemon=True).start()
            self._changed()

    def join(self, seconds: float) -> None:
        """Wait for its end; an engine that does not end in time is killed."""
        self._thread.join(seconds)
        if self._thread.is_alive() and self._bridge is not None:
            self._bridge.kill("it did not end in time")
            self._thread.join(seconds)

    def note_finished(self) -> None:
        """A job ended without harm: a place more may be tried, up to all."""
        self._used_at = time.monotonic()
        self._suspects = min(self._suspects + 1, self._spec.max_running)
        if self._bridge is not None:
            self._bridge.places = self._suspects

    # Its life

    def _live(self) -> None:
        crashes = 0
        while not self._unwanted.is_set():
            started = time.monotonic()
            try:
                how = self._load_and_serve()
            except Exception as error:  # whatever it is, it must be seen where people look
                if not self._begins_again(error):
                    self._wait_for_mending(error)
                continue
            crashes = 1 if time.monotonic() - started > _STEADY_SECONDS else crashes + 1
            if not self._unwanted.is_set():
                log.error("engine.crashed", deployment=self.deployment.id, reason=how)
                self._set_state(HostingState.LOADING, how)
                wait = min(_FIRST_RESTART_SECONDS * 2 ** (crashes - 1), _LONGEST_RESTART_SECONDS)
                self._unwanted.wait(wait)

    def _load_and_serve(self) -> str:
        """One engine process from its start to its end. Returns how it ended; raises when it never became ready."""
        try:
            return self._serve(self._loaded())
        finally:
            self._room.leave(self.deployment.id)

    def _loaded(self) -> Bridge:
        """An engine that is verified, loaded and warm: its first job pays for nothing."""
        began = time.monotonic()
        self._bridge, self._verified, self._granted_at = None, 0.0, None
        self._set_state(HostingState.LOADING, self._error)
        folder = Path(self.deployment.source)
        verify(folder, self.deployment.manifest, self._note_verified)
        self._tokenizer = ModelTokenizer.from_folder(folder)
        self._bridge = Bridge(
            self._spec,
            self._writer,
            places=self._suspects,
            stall_seconds=self._stall_seconds,
            metrics=self._metrics,
            meter_of=self._meter_of,
            program=self._program,
            grant=self._ask_for_room,
        )
        self._bridge.start()
        self._note_loaded(self._bridge, time.monotonic() - began)
        return self._bridge

    def _ask_for_room(self, needs: Needs) -> int | None:
        admission = self._room.admit(self, needs, self._unwanted.is_set)
        self._granted_at, self._waited = time.monotonic(), admission.waited
        return admission.kv_bytes

    def _note_loaded(self, bridge: Bridge, seconds: float) -> None:
        """What it took of time and memory, for who looks at the hosting."""
        self._sizes = {"load_seconds": round(seconds, 3), "weight_bytes": bridge.weight_bytes}
        if self._granted_at is not None:
            self._room.settle(self.deployment.id, weight_bytes=bridge.weight_bytes, kv_bytes=bridge.kv_bytes)
            if self._waited:
                self._sizes["switch_seconds"] = round(self._waited + time.monotonic() - self._granted_at, 3)
        if (resident := resident_bytes(bridge.pid)) is not None:
            self._sizes["resident_bytes"] = resident
        self._ready_at = self._used_at = time.monotonic()
        self._set_state(HostingState.READY, None)
        log.info("model.ready", deployment=self.deployment.id, version=self.deployment.model_version, **self._sizes)

    def _serve(self, bridge: Bridge) -> str:
        how = bridge.read()
        self._give_back_orphans(bridge, how)
        return how

    def _note_verified(self, done: int, total: int) -> None:
        self._verified = done / total if total else 1.0

    def _end_engine(self) -> None:
        """Ends whatever engine there is, each time that it holds no job."""
        while self._thread.is_alive():
            if self._bridge is not None and not self._bridge.busy:
                self._bridge.stop()
            self._thread.join(0.05)

    def _give_back_orphans(self, bridge: Bridge, how: str) -> None:
        """The jobs that were in the engine when it crashed are suspects; one that was alone there is at fault."""
        orphans = bridge.orphans()
        if not orphans:
            return
        outcome = RunOutcome.CRASHED_ALONE if len(orphans) == 1 else RunOutcome.CRASHED
        self._suspects = max(1, len(orphans) // 2)
        for job in orphans:
            job.end(GivenBack(outcome, how))
        self._writer.mark(*orphans)

    def _begins_again(self, error: Exception) -> bool:
        """Whether loading was ended by a signal, which says nothing of the model, and not too often of late.

        What is killed each time is too large for the machine, say: then it waits as after any other failure.
        """
        if not isinstance(error, EngineFailed) or not error.killed:
            return False
        now = time.monotonic()
        recent = [at for at in self._kills if now - at < KILLS_SECONDS]
        if len(recent) == len(KILL_PAUSES):
            return False
        self._kills = [*recent, now]
        log.warning("engine.killed_while_loading", deployment=self.deployment.id, reason=str(error))
        self._set_state(HostingState.LOADING, str(error))
        self._unwanted.wait(KILL_PAUSES[len(recent)])
        return True

    def _wait_for_mending(self, error: Exception) -> None:
        """Loading failed: try again when the folder changes, another version left the device, or after a minute."""
        if self._unwanted.is_set():
            return
        expected = isinstance(error, (EngineFailed, ModelFolderInvalid, DoesNotFit))
        log.error("model.load_failed", deployment=self.deployment.id, error=str(error), exc_info=not expected)
        # Whoever may use the model reads this: files are named, where they lie is for the log.
        self._set_state(HostingState.FAILED, str(error).replace(f"{self.deployment.source}/", ""))
        before, until = self._circumstances(), time.monotonic() + _RETRY_LOAD_SECONDS
        while time.monotonic() < until and not self._unwanted.wait(_LOOK_SECONDS):
            if self._circumstances() != before:
                return

    def _circumstances(self) -> object:
        return _fingerprint(self.deployment.source), self._room.departures

    def _set_state(self, state: HostingState, error: str | None) -> None:
        self._state, self._error = state, error
        self._changed()


def resident_bytes(pid: int | None) -> int | None:
    """What the process has of this machine's memory; None where there is none, or nobody tells."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_SIZE
    except (OSError, IndexError):
        return None


def _fingerprint(source: str) -> list[tuple[str, int, int]]:
    """Names, sizes and times of the folder's files; empty when it cannot be read."""
    try:
        stats = [(path.name, path.stat()) for path in sorted(Path(source).iterdir())]
    except OSError:
        return []
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
