"""The supervisor, on small programs that crash, hang, chatter and have children."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from penstock.embedded.child import Command, Log, session_members
from penstock.embedded.errors import ServiceFailed
from penstock.embedded.service import Report
from penstock.embedded.state_folder import StateFolder
from penstock.embedded.stop_switch import StopRequested, StopSwitch
from penstock.embedded.supervisor import Supervisor

from tests.platform.embedded.probes import alive, eventually

SLEEP = "import time; print('begun', flush=True); time.sleep(600)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SLEEP
PATIENT = """
import signal
told = iter(["draining", "hurrying"])
signal.signal(signal.SIGTERM, lambda *_: print(next(told), flush=True))
print("begun", flush=True)
signal.pause()
signal.pause()
"""
AFTER_THE_OTHER = """
import pathlib, signal, time
signal.signal(signal.SIGTERM, lambda *_: pathlib.Path("{mine}").touch())
print("begun", flush=True)
while not (pathlib.Path("{mine}").exists() and pathlib.Path("{other}").exists()):
    time.sleep(0.02)
"""
PARENT = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {SLEEP!r}])
print("child", child.pid, flush=True)
child.wait()
"""


class Program:
    """A service that is a line of Python; ready once it has printed something, unless told otherwise."""

    def __init__(
        self, folder: StateFolder, code: str, *, name: str = "program", stage: int = 0, stop_seconds: float = 5.0
    ) -> None:
        self.name, self.stage, self.stop_seconds = name, stage, stop_seconds
        self.ready: Callable[[], bool] = lambda: bool(self.log.last_lines())
        self.log = Log(folder.logs / f"{name}.log")
        self._folder, self._code = folder, code

    def prepare(self, report: Report) -> None:
        """Nothing to prepare."""

    def command(self) -> Command:
        """Python, running the line."""
        return Command(
            program=Path(sys.executable),
            arguments=("-c", self._code),
            folder=self._folder.root,
        )

    def is_ready(self) -> bool:
        """What the test says."""
        return self.ready()


@pytest.fixture
def folder(state_dir: Path) -> StateFolder:
    """A state folder."""
    return StateFolder(state_dir)


@pytest.fixture
def told() -> list[tuple[str, str]]:
    """What the supervisor reported."""
    return []


@pytest.fixture
def switch() -> StopSwitch:
    """The supervisor's stop switch."""
    return StopSwitch()


@pytest.fixture
def supervisor(folder: StateFolder, told: list[tuple[str, str]], switch: StopSwitch) -> Iterator[Supervisor]:
    """A supervisor that is stopped in the end."""
    supervisor = Supervisor(folder, lambda name, line: told.append((name, line)), switch)
    yield supervisor
    supervisor.stop()


def test_a_crashed_service_is_started_again_and_its_end_is_told(
    folder: StateFolder, supervisor: Supervisor, told: list[tuple[str, str]]
) -> None:
    supervisor.start(Program(folder, SLEEP))
    first = supervisor.processes["program"]
    os.kill(first, signal.SIGKILL)
    assert eventually(lambda: ("program", "ready again") in told)
    assert supervisor.processes["program"] != first
    assert ("program", "was ended by SIGKILL; starting it again in 0.2 s") in told


def test_the_wait_before_a_restart_doubles(
    folder: StateFolder, supervisor: Supervisor, told: list[tuple[str, str]]
) -> None:
    program = Program(folder, "import time; print('begun', flush=True); time.sleep(0.3); raise SystemExit(7)")
    supervisor.start(program)
    expected = [("program", f"ended with exit code 7; starting it again in {s} s") for s in (0.2, 0.4, 0.8)]
    assert eventually(lambda: [line for line in told if "exit code" in line[1]][:3] == expected)


def test_a_service_that_ends_before_it_is_ready_is_an_error_with_its_last_lines(
    folder: StateFolder, supervisor: Supervisor
) -> None:
    program = Program(folder, "print('the disk is on fire'); raise SystemExit(3)")
    program.ready = lambda: False
    with pytest.raises(ServiceFailed, match="program ended with exit code 3") as failed:
        supervisor.start(program)
    assert failed.value.last_lines == ("the disk is on fire",)


def test_what_leans_on_a_service_is_stopped_before_it(
    folder: StateFolder, supervisor: Supervisor, told: list[tuple[str, str]]
) -> None:
    base = Program(folder, SLEEP, name="base", stage=0)
    supervisor.start(base, Program(folder, SLEEP, name="upper", stage=1), Program(folder, SLEEP, name="middle"))
    processes = supervisor.processes
    supervisor.stop()
    stopped = [name for name, line in told if line == "stopped"]
    assert stopped[0] == "upper"
    assert set(stopped) == {"base", "middle", "upper"}
    assert not any(alive(pid) for pid in processes.values())


def test_services_of_one_stage_are_asked_to_stop_together(folder: StateFolder, supervisor: Supervisor) -> None:
    """Each ends only when it sees that the other has been asked too: one after the other, they would never end."""
    for name, other in (("left", "right"), ("right", "left")):
        code = AFTER_THE_OTHER.format(mine=folder.root / name, other=folder.root / other)
        supervisor.start(Program(folder, code, name=name, stop_seconds=10_000))
    supervisor.stop()


def test_what_a_slow_service_logs_is_told_until_it_is_ready(
    folder: StateFolder,
    supervisor: Supervisor,
    told: list[tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("penstock.embedded.supervisor.REPORT_SECONDS", 0.05)
    program = Program(folder, "import time; print('redo in progress', flush=True); time.sleep(600)")
    line = ("program", "redo in progress")
    program.ready = lambda: told.count(line) == 3
    supervisor.start(program)
    begun = told.index(line)  # on a slow machine it may be reported before it has logged anything
    assert told[:begun] == [("program", "starting")] * begun
    assert told[begun:] == [line, line, line, ("program", "ready")]


def grandchild_of(program: Program) -> int:
    assert eventually(lambda: bool(program.log.last_lines())), "it has not said whom it started"
    return int(program.log.last_lines()[0].split()[1])


def test_stopping_leaves_no_grandchild(folder: StateFolder, supervisor: Supervisor) -> None:
    program = Program(folder, PARENT)
    supervisor.start(program)
    session = supervisor.processes["program"]
    grandchild = grandchild_of(program)
    assert set(session_members(session)) == {session, grandchild}
    supervisor.stop()
    assert not any(alive(pid) for pid in (grandchild, *session_members(session)))


def test_a_grandchild_of_a_crashed_service_is_ended_before_the_restart(
    folder: StateFolder, supervisor: Supervisor, told: list[tuple[str, str]]
) -> None:
    program = Program(folder, PARENT)
    supervisor.start(program)
    grandchild = grandchild_of(program)
    os.kill(supervisor.processes["program"], signal.SIGKILL)
    assert eventually(lambda: ("program", "ready again") in told)
    assert not alive(grandchild)


def test_what_does_not_end_in_time_is_killed(
    folder: StateFolder, supervisor: Supervisor, told: list[tuple[str, str]]
) -> None:
    supervisor.start(Program(folder, STUBBORN, stop_seconds=0.2))
    pid = supervisor.processes["program"]
    supervisor.stop()
    assert ("program", "did not end when asked to: killed") in told
    assert not alive(pid)


def test_the_second_request_asks_the_service_to_hurry(
    folder: StateFolder, supervisor: Supervisor, switch: StopSwitch
) -> None:
    program = Program(folder, PATIENT, stop_seconds=10_000)
    supervisor.start(program)
    stopping = threading.Thread(target=supervisor.stop)
    stopping.start()
    assert eventually(lambda: "draining" in program.log.last_lines())
    assert stopping.is_alive()
    switch.press()
    stopping.join(60)
    assert program.log.last_lines()[-2:] == ("draining", "hurrying")


def test_a_request_to_stop_ends_the_wait_for_readiness(
    folder: StateFolder, supervisor: Supervisor, switch: StopSwitch
) -> None:
    program = Program(folder, SLEEP)
    program.ready = lambda: switch.press() or False
    with pytest.raises(StopRequested):
        supervisor.start(program)


def test_signals_press_the_switch_and_are_given_back(switch: StopSwitch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with switch.pressed_by_signals():
        assert not switch.is_on
        os.kill(os.getpid(), signal.SIGTERM)
        switch.wait()
        assert not switch.is_urgent
        os.kill(os.getpid(), signal.SIGINT)
        assert eventually(lambda: switch.is_urgent)
    assert signal.getsignal(signal.SIGTERM) == before


def test_one_service_that_cannot_be_restarted_does_not_keep_others_from_it(
    folder: StateFolder, supervisor: Supervisor, told: list[tuple[str, str]]
) -> None:
    broken, sound = Program(folder, SLEEP, name="broken"), Program(folder, SLEEP, name="sound")
    supervisor.start(broken, sound)

    def refuse(_report: Report) -> None:
        raise RuntimeError("no luck today")

    broken.prepare = refuse  # type: ignore[method-assign]  # it breaks between two starts
    for pid in supervisor.processes.values():
        os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: ("sound", "ready again") in told)
    assert eventually(lambda: any(name == "broken" and "no luck today" in line for name, line in told))


def test_a_log_keeps_its_bound_and_the_newest_lines(tmp_path: Path) -> None:
    log = Log(tmp_path / "chatter.log", limit=1000)
    reading, writing = os.pipe()
    writer = threading.Thread(target=_write_lines, args=(writing, 500))
    writer.start()
    log.copy_from(os.fdopen(reading, "rb", buffering=0))
    writer.join()
    files = sorted(tmp_path.iterdir())
    assert {file.name for file in files} <= {"chatter.log", "chatter.log.1"}
    newest = "".join(file.read_text() for file in reversed(files)).splitlines()
    assert newest[-1] == "line 499"


def _write_lines(descriptor: int, count: int) -> None:
    for number in range(count):
        os.write(descriptor, f"line {number}\n".encode())
    os.close(descriptor)
