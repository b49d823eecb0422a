"""Keeps this worker's models as the `deployment` table wants them."""

import threading
from collections.abc import Callable, Sequence
from typing import Final

from penstock.db import Database
from penstock.logs import get_logger
from penstock.registry.hosting_services import wanted_deployments
from penstock.registry.models import Deployment
from penstock.settings import Settings

from penstock_worker.doorbells import Doorbells
from penstock_worker.energy import EnergyMeters
from penstock_worker.engine_process import ENGINE_PROGRAM
from penstock_worker.hosted_model import HostedModel
from penstock_worker.journal_writer import JournalWriter
from penstock_worker.messages import EngineSpec
from penstock_worker.patience import DATABASE_OUTAGE
from penstock_worker.worker_metrics import WorkerMetrics

POLL_SECONDS: Final = 2.0
_END_SECONDS: Final = 10.0

log = get_logger(__name__)


class Host:
    """All models of this worker, one engine process each. A new version loads beside the old one."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        writer: JournalWriter,
        doorbells: Doorbells,
        *,
        changed: Callable[[], None],
        metrics: WorkerMetrics | None = None,
        program: Sequence[str] = ENGINE_PROGRAM,
    ) -> None:
        self._settings = settings
        self._database = database
        self._writer = writer
        self._doorbells = doorbells
        self._changed = changed
        self._program = program
        self._metrics = metrics or WorkerMetrics()
        self._energy = EnergyMeters(self._metrics.watch_energy)
        self._models: dict[str, HostedModel] = {}
        self._lock = threading.Lock()

    @property
    def models(self) -> list[HostedModel]:
        """All that is here, in whatever state."""
        with self._lock:
            return list(self._models.values())

    def ready_servers(self) -> list[HostedModel]:
        """The models that take jobs."""
        return [model for model in self.models if model.ready]

    def open_deployments(self) -> list[str]:
        """Those that take jobs and have a place free."""
        return [model.deployment_id for model in self.ready_servers() if model.bridge.free_places > 0]

    def run(self, stop: threading.Event) -> None:
        """Reconcile until `stop` is set."""
        while not stop.is_set():
            try:
                self.reconcile()
            except DATABASE_OUTAGE as error:
                log.warning("database.unreachable", what="hosting", error=type(error).__name__)
            stop.wait(POLL_SECONDS)

    def reconcile(self) -> None:
        """Start what is wanted and not here, unload what is here and not wanted, forget what is gone."""
        with self._database.transaction() as session:
            wanted = {deployment.id: deployment for deployment in wanted_deployments(session, self._names())}
        for model in self.models:
            if model.gone:
                with self._lock:
                    del self._models[model.deployment_id]
                self._changed()
            elif not model.serves(wanted.get(model.deployment_id)):
                model.unload()
        for deployment in wanted.values():
            if deployment.id not in self._models:
                self._host(deployment)

    def close(self) -> None:
        """Unload everything and wait until no engine is left."""
        models = self.models
        for model in models:
            model.unload()
        for model in models:
            model.join(_END_SECONDS)

    def _host(self, deployment: Deployment) -> None:
        model = HostedModel(
            deployment,
            spec_of(deployment, self._settings),
            self._writer,
            stall_seconds=self._settings.engine_stall_seconds,
            changed=self._on_change,
            metrics=self._metrics.of(deployment.model_name, deployment.model_version, deployment.id),
            meter_of=self._energy.of,
            program=self._program,
        )
        with self._lock:
            self._models[deployment.id] = model
        model.start()

    def _on_change(self) -> None:
        self._doorbells.listen(model.deployment_id for model in self.ready_servers())
        self._changed()

    def _names(self) -> set[str] | None:
        names = {name.strip() for name in self._settings.worker_models.split(",")}
        return None if "*" in names else names


def spec_of(deployment: Deployment, settings: Settings) -> EngineSpec:
    """What the deployment's engine is told, as the operator set it."""
    return EngineSpec(
        folder=deployment.source,
        max_running=settings.worker_slots,
        device=settings.worker_device,
        kv_bytes=settings.engine_kv_bytes,
        threads=settings.engine_threads,
        quantization=settings.engine_quantization,
        kv_dtype=settings.engine_kv_dtype,
        graphs=settings.engine_graphs,
        overlap=settings.engine_overlap,
        memory_share=settings.engine_memory_share,
        max_model_len=settings.engine_max_model_len,
        deterministic=settings.engine_deterministic,
        name=deployment.id,
        trace_folder=settings.trace_folder,
    )
