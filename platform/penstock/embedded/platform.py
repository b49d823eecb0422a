"""The whole platform on one machine: services, migrations, first key, and the platform's own processes."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session

from penstock.auth.services import Bootstrap, bootstrap
from penstock.db import Database
from penstock.embedded import ports as tcp
from penstock.embedded.app_process import AppProcess, answers, is_connected
from penstock.embedded.child import Command, Log, run_to_end
from penstock.embedded.errors import ServiceFailed
from penstock.embedded.service import Report, failure, silent
from penstock.embedded.services import EmbeddedServices, External, Ports
from penstock.embedded.stop_switch import StopSwitch
from penstock.registry.catalogue import list_models
from penstock.registry.hosting_services import HostingState
from penstock.settings import Settings, variable_name

STOP_SECONDS = 15.0
MODEL_POLL_SECONDS = 0.2


class Platform:
    """Everything that `penstock up` runs, running while the `with` block does.

    `port=None` takes last time's port or a free one. `models` maps names of models to folders that are
    registered as their champions. `settings` are values for fields of `Settings` that the platform's
    processes get. Enter it in a thread that lives as long as the platform should; entering raises an
    EmbeddedError that says what is in the way, or StopRequested when the switch was pressed meanwhile.
    """

    bootstrap: Bootstrap | None
    """First administrator and key, when this was the first start; they are kept nowhere."""

    def __init__(
        self,
        state_dir: Path,
        *,
        host: str = tcp.LOOPBACK,
        port: int | None = None,
        worker: bool = True,
        models: Mapping[str, Path] | None = None,
        settings: Mapping[str, str] | None = None,
        external: External | None = None,
        ports: Ports | None = None,
        durable: bool = True,
        report: Report = silent,
        switch: StopSwitch | None = None,
    ) -> None:
        self._host, self._chosen_port, self._with_worker = host, port, worker
        self._models, self._extra_settings = dict(models or {}), dict(settings or {})
        self._report, self._switch = report, switch or StopSwitch()
        self._on_exit = ExitStack()
        self.services = EmbeddedServices(
            state_dir, durable=durable, external=external, ports=ports, report=report, switch=self._switch
        )

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            self._start(undo)
            self._on_exit = undo.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._on_exit.close()

    @property
    def url(self) -> str:
        """Where API and portal are."""
        return f"http://{self._reachable_host}:{self.port}"

    @property
    def _reachable_host(self) -> str:
        return tcp.LOOPBACK if self._host in ("0.0.0.0", "::") else self._host  # noqa: S104 - compared

    def _start(self, undo: ExitStack) -> None:
        """MLflow loads while everything else starts; the models come last, since they are registered there."""
        self.services.take_folder(undo)
        self.port = self.services.folder.port("web", self._chosen_port, "--port or PENSTOCK_WEB_PORT", self._host)
        self.services.start()
        self._settle()
        self._run("migrate")
        processes = self._processes()
        for process in processes:
            self.services.supervisor.launch(process)
        self.services.await_mlflow()
        for name, folder in self._models.items():
            self._run("models", "register", str(folder.absolute()), "--name", name, "--alias", "champion")
        for process in processes:
            self.services.supervisor.await_ready(process)
        self.bootstrap = self._bootstrap()
        if self._with_worker:
            self._await_models()
        self.services.supervisor.remember(url=self.url, environment=self._environment)

    def _settle(self) -> None:
        """Fix the settings, which every process gets by its environment."""
        known = {
            "database_url": self.services.database_url,
            "redis_url": self.services.redis_url,
            "mlflow_tracking_uri": self.services.tracking_uri,
            "web_host": self._host,
            "web_port": str(self.port),
            **self._hints_by_webhook(),
            **self._extra_settings,
        }
        asked = Settings.from_environment(**known)
        if not asked.secret_key.get_secret_value():
            known["secret_key"] = self.services.secrets.session_key
        if asked.files_url is None:
            known["files_url"] = str(self.services.folder.root / "files")
        if asked.models_folder is None:
            known["models_folder"] = str(self.services.folder.root / "models")
        self.settings = Settings.from_environment(**known)
        self._environment = {variable_name(field): value for field, value in known.items() if value is not None}

    def _hints_by_webhook(self) -> dict[str, str]:
        """Settings by which the MLflow that runs here tells of changes; one from elsewhere is not for us to set up."""
        if self.services.mlflow is None:
            return {}
        secret = self.services.secrets.registry_webhook_secret
        return {"registry_webhook_url": self.url, "registry_webhook_secret": secret}

    def _run(self, *arguments: str) -> None:
        """Run one of our own commands to its end. Raises ServiceFailed with the end of what it said."""
        name = arguments[0]
        self._report(name, "running")
        folder = self.services.folder
        log = Log(folder.logs / f"{name}.log")
        command = Command(
            program=Path(sys.executable),
            arguments=("-m", "penstock", *arguments),
            folder=folder.root,
            inherits_environment=True,
            environment=self._environment,
        )
        code = run_to_end(command, log)
        if code != 0:
            raise failure(folder, " ".join(arguments[:2]), f"ended with exit code {code}", log)
        self._report(name, "done")

    def _processes(self) -> list[AppProcess]:
        folder, supervisor = self.services.folder, self.services.supervisor
        backends = [_port_of(self.services.database_url), _port_of(self.services.redis_url)]

        def is_at_work(name: str) -> bool:
            return is_connected(supervisor.processes.get(name), backends)

        def process(name: str, is_ready: Callable[[], bool], stop_seconds: float) -> AppProcess:
            return AppProcess(name, folder, self._environment, is_ready, stop_seconds=stop_seconds)

        processes = [
            process("web", lambda: answers(f"{self.url}/healthz"), STOP_SECONDS),
            process("control", lambda: is_at_work("control"), STOP_SECONDS),
        ]
        if self._with_worker:
            drain = self.settings.worker_drain_seconds + STOP_SECONDS
            processes.append(process("worker", lambda: is_at_work("worker"), drain))
        return processes

    def _bootstrap(self) -> Bootstrap | None:
        with self._session() as session:
            return bootstrap(session, environment=self.settings.environment)

    def _await_models(self) -> None:
        """Wait until each given model takes jobs. Raises ServiceFailed with the reason when one cannot be loaded."""
        for name in self._models:
            self._report("models", f"loading {name}")
            while not self._takes_jobs(name):
                self._switch.raise_if_on()
                time.sleep(MODEL_POLL_SECONDS)
            self._report("models", f"{name} takes jobs")

    def _takes_jobs(self, name: str) -> bool:
        with self._session() as session:
            standing = next((model for model in list_models(session) if model.name == name), None)
        if standing is None or (newest := standing.incoming or standing.champion) is None:
            return False
        if HostingState.FAILED in newest.hosting_states and not newest.ready:
            raise ServiceFailed(f"model {name}", newest.state)
        return newest.ready and standing.incoming is None

    @contextmanager
    def _session(self) -> Iterator[Session]:
        database = Database(self.settings, pool_size=1)
        try:
            with database.transaction() as session:
                yield session
        finally:
            database.close()


def _port_of(url: str) -> int:
    standard = 6379 if url.startswith("redis") else 5432
    return make_url(url).port or standard
