"""From start to end, through kill -9 and over whatever an earlier life left behind."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from penstock.embedded import EmbeddedServices
from penstock.embedded.errors import ServiceFailed, StateFolderUnusable
from penstock.embedded.postgres import Postgres
from penstock.embedded.state_folder import StateFolder

from tests.platform.embedded.probes import alive, eventually, read_marks, users_of, write_marks

pytestmark = pytest.mark.drill

SUPERVISOR = """
import json, sys, time
from pathlib import Path
from penstock.embedded import EmbeddedServices
from tests.platform.embedded.probes import write_marks
with EmbeddedServices(Path(sys.argv[1]), mlflow=False) as services:
    write_marks(services, "written before the kill")
    print(json.dumps(services.supervisor.processes), flush=True)
    time.sleep(600)
"""


@contextmanager
def supervisor_process(state_dir: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, int]]]:
    """A supervisor in a process of its own, and its children's ids."""
    command = [sys.executable, "-c", SUPERVISOR, str(state_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())
        process.kill()


def test_stopping_leaves_no_process_and_the_next_start_finds_all(state_dir: Path) -> None:
    with EmbeddedServices(state_dir, mlflow=False, durable=False) as services:
        write_marks(services, "first life")
        addresses = (services.database_url, services.redis_url)
    assert users_of(state_dir) == []
    assert not (state_dir / "running.json").exists()
    with EmbeddedServices(state_dir, mlflow=False, durable=False) as services:
        assert read_marks(services) == (["first life"], ["first life"])
        assert (services.database_url, services.redis_url) == addresses
    assert users_of(state_dir) == []


def test_after_kill_9_nothing_runs_on_and_the_next_start_recovers(state_dir: Path) -> None:
    with supervisor_process(state_dir) as (supervisor, children):
        supervisor.kill()
        supervisor.wait()
        with EmbeddedServices(state_dir, mlflow=False) as services:
            assert not any(alive(pid) for pid in children.values())
            assert read_marks(services) == (["written before the kill"], ["written before the kill"])
    assert users_of(state_dir) == []


@pytest.mark.skipif(sys.platform != "linux", reason="death signals are Linux's")
def test_on_linux_the_children_end_by_themselves_when_the_supervisor_is_killed(state_dir: Path) -> None:
    with supervisor_process(state_dir) as (supervisor, children):
        assert all(alive(pid) for pid in children.values())
        supervisor.kill()
        assert eventually(lambda: not any(alive(pid) for pid in children.values()))
    assert not (state_dir / "postgres/data/postmaster.pid").exists(), "PostgreSQL did not shut down in order"


def test_everything_killed_at_once_is_recovered(state_dir: Path) -> None:
    """As after a power cut: crash recovery, and an append-only file that was not closed."""
    with supervisor_process(state_dir) as (supervisor, children):
        backends = [process.pid for process in psutil.Process(children["postgres"]).children()]
        for pid in (children["postgres"], supervisor.pid, children["redis"], *backends):
            with suppress(ProcessLookupError):  # the backends end when their server does
                os.kill(pid, signal.SIGKILL)
    assert (state_dir / "postgres/data/postmaster.pid").exists()
    with EmbeddedServices(state_dir, mlflow=False) as services:
        assert read_marks(services) == (["written before the kill"], ["written before the kill"])
        assert "automatic recovery in progress" in (services.folder.logs / "postgres.log").read_text()


def test_a_stale_process_id_that_is_another_process_by_now_is_no_obstacle(state_dir: Path) -> None:
    with EmbeddedServices(state_dir, mlflow=False, durable=False) as services:
        account = services.folder.account
        user = {"user": account.uid, "group": account.gid} if account else {}
    with subprocess.Popen(["sleep", "600"], cwd="/", **user) as stranger:
        pid_file = state_dir / "postgres/data/postmaster.pid"
        pid_file.write_text(f"{stranger.pid}\n{state_dir}/postgres/data\n1700000000\n1\n\n127.0.0.1\n")
        with EmbeddedServices(state_dir, mlflow=False, durable=False):
            assert alive(stranger.pid)
        stranger.kill()


def test_a_server_that_outlived_its_supervisor_is_shut_down_first(state_dir: Path) -> None:
    with EmbeddedServices(state_dir, mlflow=False, durable=False) as services:
        write_marks(services, "kept")
        command = Postgres(services.folder, services.secrets, services.postgres.port).command()
    user = {"user": command.account.uid, "group": command.account.gid} if command.account else {}
    orphan = subprocess.Popen(
        [str(command.program), *command.arguments],
        cwd=command.folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **user,
    )
    pid_file = state_dir / "postgres/data/postmaster.pid"
    assert eventually(lambda: pid_file.exists() and "ready" in pid_file.read_text())
    with EmbeddedServices(state_dir, mlflow=False, durable=False) as services:
        assert orphan.wait() == 0, "it was not shut down in order"
        assert read_marks(services) == (["kept"], ["kept"])


def test_an_interrupted_initdb_is_begun_anew(state_dir: Path) -> None:
    folder = StateFolder(state_dir)
    partial = folder.postgres / "data.partial"
    partial.mkdir(parents=True)
    (partial / "PG_VERSION").write_text("18\n")
    with EmbeddedServices(state_dir, mlflow=False, durable=False) as services:
        write_marks(services, "new")
        assert read_marks(services) == (["new"], ["new"])
    assert not partial.exists()


def test_a_database_that_cannot_start_says_why_and_leaves_nothing_running(state_dir: Path) -> None:
    with EmbeddedServices(state_dir, mlflow=False, durable=False):
        pass
    (state_dir / "postgres/data/PG_VERSION").write_text("9.6\n")
    with (
        pytest.raises(ServiceFailed, match="postgres ended with exit code 1") as failed,
        EmbeddedServices(state_dir, mlflow=False, durable=False),
    ):
        pass
    assert "database files are incompatible with server" in str(failed.value)
    assert users_of(state_dir) == []


def test_a_database_without_its_passwords_is_not_overwritten(state_dir: Path) -> None:
    with EmbeddedServices(state_dir, mlflow=False, durable=False):
        pass
    (state_dir / "secrets.json").unlink()
    with (
        pytest.raises(StateFolderUnusable, match=r"no secrets\.json"),
        EmbeddedServices(state_dir, mlflow=False, durable=False),
    ):
        pass
