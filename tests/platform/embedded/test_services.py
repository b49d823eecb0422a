"""The databases as they run: who may come in, as whom they run, what survives a crash."""

import os
import signal
import stat
import sys
from pathlib import Path

import psutil
import psycopg
import pytest
import redis
from penstock.embedded import EmbeddedServices
from penstock.embedded.errors import StateFolderBusy
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.platform.embedded.probes import alive, connect, eventually, read_marks, write_marks

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def test_each_database_belongs_to_a_role_that_is_no_superuser(services: EmbeddedServices) -> None:
    assert services.postgres is not None
    for name in ("penstock", "mlflow"):
        with connect(services.postgres.url(name)) as connection:
            role, database, is_superuser = connection.execute(
                "SELECT current_user, current_database(), rolsuper FROM pg_roles WHERE rolname = current_user"
            ).fetchone() or ("", "", True)
        assert (role, database, is_superuser) == (name, name, False)


def test_one_role_cannot_enter_the_others_database(services: EmbeddedServices) -> None:
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        connect(services.database_url.replace("/penstock", "/mlflow").replace("//mlflow", "//penstock"))


@pytest.mark.parametrize("host", ["127.0.0.1", "socket"])
@pytest.mark.parametrize("password", [None, "wrong"])
def test_postgres_lets_nobody_in_without_the_password(
    services: EmbeddedServices, host: str, password: str | None
) -> None:
    assert services.postgres is not None
    where = str(services.postgres.sockets) if host == "socket" else host
    with pytest.raises(psycopg.OperationalError, match=r"no password supplied|password authentication failed"):
        psycopg.connect(host=where, port=services.postgres.port, user="postgres", dbname="postgres", password=password)


@pytest.mark.parametrize("password", [None, "wrong"])
def test_redis_lets_nobody_in_without_the_password(services: EmbeddedServices, password: str | None) -> None:
    assert services.redis is not None
    at_once = Retry(NoBackoff(), 0)
    client = redis.Redis(port=services.redis.port, password=password, retry=at_once)
    with client, pytest.raises(redis.AuthenticationError):
        client.ping()


def test_both_listen_on_the_loopback_address_alone(services: EmbeddedServices) -> None:
    for pid in services.supervisor.processes.values():
        listening = [c.laddr.ip for c in psutil.Process(pid).net_connections("inet") if c.status == "LISTEN"]
        assert listening == ["127.0.0.1"]


def test_redis_appends_to_its_file_and_never_evicts(services: EmbeddedServices) -> None:
    with redis.Redis.from_url(services.redis_url, decode_responses=True) as client:
        settings = client.config_get("*")
    assert settings["appendonly"] == "yes"
    assert settings["maxmemory-policy"] == "noeviction"
    assert settings["save"] == ""


def test_folders_and_secrets_are_closed_to_others(services: EmbeddedServices) -> None:
    root = services.folder.root
    for name in ("postgres/sockets", "postgres/data", "redis", "logs", "mlflow"):
        assert stat.S_IMODE((root / name).stat().st_mode) == 0o700, name
    for name in ("secrets.json", "running.json", "lock"):
        assert stat.S_IMODE((root / name).stat().st_mode) == 0o600, name
    assert (root / "postgres/sockets" / f".s.PGSQL.{services.postgres.port}").is_socket()


def test_passwords_are_on_no_command_line(services: EmbeddedServices) -> None:
    words = [word for pid in services.supervisor.processes.values() for word in psutil.Process(pid).cmdline()]
    assert words
    assert not any(secret in word for secret in vars(services.secrets).values() for word in words)


def test_passwords_are_not_in_the_logs(services: EmbeddedServices) -> None:
    logs = "".join(path.read_text() for path in services.folder.logs.iterdir())
    assert "ready to accept connections" in logs
    assert not any(secret in logs for secret in vars(services.secrets).values())


@as_root
def test_under_root_the_databases_run_as_an_unprivileged_user(services: EmbeddedServices) -> None:
    for name, pid in services.supervisor.processes.items():
        process = psutil.Process(pid)
        assert 0 not in process.uids(), name
        assert 0 not in process.gids(), name
        if sys.platform == "linux":
            status = Path(f"/proc/{pid}/status").read_text().splitlines()
            groups = next(line.split()[1:] for line in status if line.startswith("Groups:"))
            assert groups == [], f"{name} kept root's groups"


def test_a_second_supervisor_is_told_who_runs_here(services: EmbeddedServices) -> None:
    services.supervisor.remember(url="http://127.0.0.1:8080")
    with (
        pytest.raises(StateFolderBusy, match=rf"process {os.getpid()}\) at http://127.0.0.1:8080"),
        EmbeddedServices(services.folder.root, mlflow=False),
    ):
        pass
    write_marks(services, "undisturbed")
    assert all(alive(pid) for pid in services.supervisor.processes.values())


@pytest.mark.parametrize("name", ["postgres", "redis"])
def test_a_killed_database_comes_back_with_its_data(services: EmbeddedServices, name: str) -> None:
    write_marks(services, f"before {name}")
    killed = services.supervisor.processes[name]
    os.kill(killed, signal.SIGKILL)

    def is_back() -> bool:
        try:
            return services.supervisor.processes.get(name, killed) != killed and bool(read_marks(services))
        except (psycopg.OperationalError, redis.ConnectionError):
            return False

    assert eventually(is_back)
    rows, marks = read_marks(services)
    assert rows == marks
    assert rows[-1] == f"before {name}"
