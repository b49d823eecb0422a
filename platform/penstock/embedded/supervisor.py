"""Keeps processes running: started in order, restarted after crashes, stopped in reverse, none left."""

import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from penstock.embedded.child import Child, Log
from penstock.embedded.errors import EmbeddedError, NoDiskSpace
from penstock.embedded.leftovers import describe_children
from penstock.embedded.service import Report, Service, failure, silent
from penstock.embedded.state_folder import StateFolder
from penstock.embedded.stop_switch import StopSwitch

FIRST_BACKOFF, LONGEST_BACKOFF = 0.2, 30.0  # seconds before a restart; doubled at each crash in a row
STEADY_SECONDS = 60.0  # a process that ran so long has not crashed "in a row"
REPORT_SECONDS = 3.0  # between two lines of progress about one service that is not ready yet
HURRIED_SECONDS = 5.0  # what a process gets to end after the second request to stop


@dataclass
class _Supervised:
    """One service and the process that runs it now. Only the supervisor, under its lock, writes here."""

    service: Service
    log: Log
    child: Child | None = None
    ready: bool = False
    crashes: int = 0
    started_at: float = 0.0
    restart_at: float = 0.0


class Supervisor:
    """Runs services on one state folder whose lock the caller holds."""

    def __init__(self, folder: StateFolder, report: Report = silent, switch: StopSwitch | None = None) -> None:
        self.folder, self._report = folder, report
        self._switch = switch or StopSwitch()
        self._supervised: dict[str, _Supervised] = {}
        self._lock = threading.RLock()
        self._stopped = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="supervisor", daemon=True)

    # Starting

    def start(self, *services: Service) -> None:
        """Start these together and wait, without a time limit, until all are ready.

        Raises ServiceFailed (or NoDiskSpace) when one of them ends first, StopRequested when the switch was
        pressed.
        """
        for service in services:
            self.launch(service)
        for service in services:
            self.await_ready(service)

    def launch(self, service: Service) -> None:
        """Start the process of a service, without waiting for it."""
        self._switch.raise_if_on()
        supervised = _Supervised(service, Log(self.folder.logs / f"{service.name}.log"))
        with self._lock:
            self._supervised[service.name] = supervised
            self._spawn(supervised)
            self._remember_children()
        if not self._watcher.is_alive():
            self._watcher.start()

    def _spawn(self, supervised: _Supervised) -> None:
        with self.folder.full_disk_named():
            supervised.service.prepare(self._report)
        supervised.child = Child(supervised.service.command(), supervised.log)
        supervised.ready = False
        supervised.started_at = time.monotonic()

    def await_ready(self, service: Service) -> None:
        """Wait until a launched service serves, telling what it logs meanwhile."""
        supervised = self._supervised[service.name]
        report_at = time.monotonic() + REPORT_SECONDS
        while not service.is_ready():
            self._switch.raise_if_on()
            assert supervised.child is not None
            if supervised.child.ended_within(0.03):
                raise self._start_failure(supervised, supervised.child)
            if time.monotonic() > report_at:
                self._report(service.name, " ".join(supervised.log.last_lines(1)) or "starting")
                report_at += REPORT_SECONDS
        supervised.ready = True
        self._report(service.name, "ready")

    def _start_failure(self, supervised: _Supervised, child: Child) -> EmbeddedError:
        end = child.end
        child.clean_up()  # only now is its log complete
        supervised.child = None
        return failure(self.folder, supervised.service.name, end, supervised.log)

    @property
    def processes(self) -> dict[str, int]:
        """The process id of every service that runs now."""
        with self._lock:
            return {name: one.child.pid for name, one in self._supervised.items() if one.child is not None}

    # Watching

    def _watch(self) -> None:
        """Until everything is stopped. This thread outlives every child that it starts (see Child)."""
        while not self._stopped.wait(0.2):
            with self._lock:
                for supervised in self._supervised.values():
                    if not self._switch.is_on and (supervised.ready or supervised.crashes):
                        self._attend(supervised)

    def _attend(self, supervised: _Supervised) -> None:
        """One look at a service that has been ready: restart it if it has crashed and its time has come."""
        try:
            if supervised.child is None:
                if time.monotonic() >= supervised.restart_at:
                    self._spawn(supervised)
                    with suppress(NoDiskSpace):  # no reason not to restart
                        self._remember_children()
            elif supervised.child.exit_code is not None:
                self._note_crash(supervised, supervised.child.end)
            elif not supervised.ready and supervised.service.is_ready():
                supervised.ready = True
                self._report(supervised.service.name, "ready again")
        except Exception as error:  # whatever it is, the other services go on being watched
            self._note_crash(supervised, f"could not be started: {error}")

    def _note_crash(self, supervised: _Supervised, how: str) -> None:
        if supervised.ready and time.monotonic() - supervised.started_at > STEADY_SECONDS:
            supervised.crashes = 0
        backoff = min(FIRST_BACKOFF * 2 ** min(supervised.crashes, 10), LONGEST_BACKOFF)
        supervised.crashes += 1
        supervised.restart_at = time.monotonic() + backoff
        supervised.ready = False
        if supervised.child is not None:
            supervised.child.clean_up()
            supervised.child = None
        self._report(supervised.service.name, f"{how}; starting it again in {backoff:.1f} s")

    # Stopping

    def stop(self) -> None:
        """Stop every process, the highest stage first, and whatever they left behind."""
        if not self._switch.is_on:
            self._switch.press()
        with self._lock:
            running = [(one.service, one.child) for one in self._supervised.values() if one.child is not None]
            for stage in sorted({service.stage for service, _ in running}, reverse=True):
                self._stop_together([(service, child) for service, child in running if service.stage == stage])
            self._supervised.clear()
        self._stopped.set()
        if self._watcher.is_alive():
            self._watcher.join()
        self.folder.forget_running()

    def _stop_together(self, group: list[tuple[Service, Child]]) -> None:
        asked_at, hurried_at = time.monotonic(), None
        for _, child in group:
            child.send(child.command.stop_signal)
        while group:
            if hurried_at is None and self._switch.is_urgent:
                hurried_at = time.monotonic()
                for _, child in group:
                    child.send(child.command.stop_signal)
            for service, child in list(group):
                patience = asked_at + service.stop_seconds
                if hurried_at is not None:
                    patience = min(patience, hurried_at + HURRIED_SECONDS)
                if child.ended_within(0.02) or time.monotonic() > patience:
                    self._end(service, child)
                    group.remove((service, child))

    def _end(self, service: Service, child: Child) -> None:
        if child.exit_code is None:
            self._report(service.name, "did not end when asked to: killed")
        child.clean_up()
        self._report(service.name, "stopped")

    # What a later supervisor needs to know, should this one be killed

    def _remember_children(self) -> None:
        self.remember(**describe_children(self.processes))

    def remember(self, **facts: Any) -> None:
        """Add to what `running.json` says about us."""
        known = self.folder.read_running()
        self.folder.write_private("running.json", known | {"pid": os.getpid()} | facts)
