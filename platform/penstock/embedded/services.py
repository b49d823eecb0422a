"""PostgreSQL, Redis and MLflow, run from pip packages on one state folder."""

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from penstock.embedded import ports
from penstock.embedded.postgres import Postgres
from penstock.embedded.redis import Redis
from penstock.embedded.service import Report, silent
from penstock.embedded.state_folder import MINIMUM_FREE_BYTES, StateFolder
from penstock.embedded.supervisor import Supervisor, end_leftovers


class EmbeddedServices:
    """The services that `penstock` needs, running while the `with` block does.

    `durable=False` is for tests: nothing is forced to the disk. Ports are last time's, or free ones, unless given. Enter it in
    a thread that lives as long as the services should.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        durable: bool = True,
        postgres_port: int | None = None,
        redis_port: int | None = None,
        minimum_free_bytes: int = MINIMUM_FREE_BYTES,
        report: Report = silent,
    ) -> None:
        self._state_dir, self._durable, self._report = state_dir, durable, report
        self._chosen_ports = {"postgres": postgres_port, "redis": redis_port}
        self._minimum_free_bytes = minimum_free_bytes
        self._on_exit = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            self._start(undo)
            self._on_exit = undo.pop_all()
        return self

    def _start(self, undo: ExitStack) -> None:
        folder = StateFolder(self._state_dir, minimum_free_bytes=self._minimum_free_bytes)
        undo.enter_context(folder.locked())
        end_leftovers(folder, self._report)
        secrets = folder.secrets()
        self.supervisor = Supervisor(folder, self._report)
        undo.callback(self.supervisor.stop)
        self.postgres = Postgres(folder, secrets, self._port(folder, "postgres"), durable=self._durable)
        self.redis = Redis(folder, secrets, self._port(folder, "redis"), durable=self._durable)
        self.supervisor.start(self.postgres, self.redis)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._on_exit.close()

    def _port(self, folder: StateFolder, service: str) -> int:
        return ports.choose(self._chosen_ports[service], None, f"--{service}-port")

    @property
    def database_url(self) -> str:
        """The platform's database, as SQLAlchemy's address with the password."""
        return self.postgres.url("penstock")

    @property
    def redis_url(self) -> str:
        """Redis, with the password."""
        return self.redis.url
