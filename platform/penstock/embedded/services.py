"""PostgreSQL, Redis and MLflow, run from pip packages on one state folder."""

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from penstock.embedded.leftovers import end_leftovers
from penstock.embedded.mlflow import MLflow
from penstock.embedded.postgres import Postgres
from penstock.embedded.redis import Redis
from penstock.embedded.service import Report, silent
from penstock.embedded.state_folder import MINIMUM_FREE_BYTES, StateFolder
from penstock.embedded.stop_switch import StopSwitch
from penstock.embedded.supervisor import Supervisor


@dataclass(frozen=True)
class External:
    """Addresses of servers that run elsewhere; what is None is run here."""

    database_url: str | None = field(default=None, repr=False)
    redis_url: str | None = field(default=None, repr=False)
    tracking_uri: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Ports:
    """TCP ports on the loopback address; None means last time's, or any free one."""

    postgres: int | None = None
    redis: int | None = None
    mlflow: int | None = None


class EmbeddedServices:
    """The services that Penstock needs, running while the `with` block does.

    `mlflow=False` leaves MLflow out. `durable=False` is for tests: nothing is forced to the disk. Enter the
    block in a thread that lives as long as the services should. Entering raises an EmbeddedError that says
    what is in the way.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        mlflow: bool = True,
        durable: bool = True,
        external: External | None = None,
        ports: Ports | None = None,
        minimum_free_bytes: int = MINIMUM_FREE_BYTES,
        report: Report = silent,
        switch: StopSwitch | None = None,
    ) -> None:
        self._state_dir, self._with_mlflow, self._durable = state_dir, mlflow, durable
        self._external, self._ports = external or External(), ports or Ports()
        self._report, self._switch = report, switch
        self._minimum_free_bytes = minimum_free_bytes
        self._on_exit = ExitStack()
        self.postgres: Postgres | None = None
        self.redis: Redis | None = None
        self.mlflow: MLflow | None = None

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            self.take_folder(undo)
            self.start()
            self.await_mlflow()
            self._on_exit = undo.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._on_exit.close()

    def take_folder(self, undo: ExitStack) -> None:
        """Lock the state folder, end what an earlier supervisor left; `undo` learns how to stop everything."""
        self.folder = StateFolder(self._state_dir, minimum_free_bytes=self._minimum_free_bytes)
        undo.enter_context(self.folder.locked())
        end_leftovers(self.folder, self._report)
        self.secrets = self.folder.secrets()
        self.supervisor = Supervisor(self.folder, self._report, self._switch)
        undo.callback(self.supervisor.stop)

    def start(self) -> None:
        """Start the databases and wait for them; launch MLflow, which loads for some seconds."""
        self._choose_services()
        self.supervisor.start(*(service for service in (self.postgres, self.redis) if service))
        if self.mlflow:
            self.supervisor.launch(self.mlflow)

    def _choose_services(self) -> None:
        """MLflow's database is always ours: one given for Penstock is no place for other tables."""
        runs_mlflow = self._with_mlflow and not self._external.tracking_uri
        folder, secrets, ports = self.folder, self.secrets, self._ports
        if runs_mlflow or not self._external.database_url:
            port = folder.port("postgres", ports.postgres, "--postgres-port")
            self.postgres = Postgres(folder, secrets, port, durable=self._durable)
        if not self._external.redis_url:
            port = folder.port("redis", ports.redis, "--redis-port")
            self.redis = Redis(folder, secrets, port, durable=self._durable)
        if runs_mlflow and self.postgres:
            port = folder.port("mlflow", ports.mlflow, "--mlflow-port")
            self.mlflow = MLflow(folder, secrets, port, self.postgres.url("mlflow"))

    def await_mlflow(self) -> None:
        """Wait until MLflow serves, if it runs here."""
        if self.mlflow:
            self.supervisor.await_ready(self.mlflow)

    @property
    def database_url(self) -> str:
        """The platform's database, as SQLAlchemy's address with the password."""
        if self._external.database_url:
            return self._external.database_url
        assert self.postgres is not None
        return self.postgres.url("penstock")

    @property
    def redis_url(self) -> str:
        """Redis, with the password."""
        if self._external.redis_url:
            return self._external.redis_url
        assert self.redis is not None
        return self.redis.url

    @property
    def tracking_uri(self) -> str | None:
        """MLflow's address; None when it was left out."""
        return self.mlflow.url if self.mlflow else self._external.tracking_uri
