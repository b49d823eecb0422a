"""Keeps this worker's models as the tables `deployment` and `placement` want them."""

import threading
from collections.abc import Callable, Collection, Sequence
from typing import Final

from penstock.db import Database
from penstock.deployments.placement import HostingMode, kv_shares
from penstock.deployments.services import Wanted, wanted_on
from penstock.logs import get_logger
from penstock.registry.hosting_services import HostingReport, HostingState
from penstock.registry.models import Deployment
from penstock.settings import Settings

from penstock_worker.doorbells import Doorbells
from penstock_worker.energy import EnergyMeters
from penstock_worker.engine_process import ENGINE_PROGRAM
from penstock_worker.hosted_model import HostedModel
from penstock_worker.journal_writer import JournalWriter
from penstock_worker.messages import EngineSpec
from penstock_worker.patience import DATABASE_OUTAGE
from penstock_worker.room import Room
from penstock_worker.worker_metrics import WorkerMetrics

POLL_SECONDS: Final = 2.0
_END_SECONDS: Final = 10.0
_ON_THE_DEVICE: Final = (HostingState.LOADING, HostingState.READY)

log = get_logger(__name__)


class Host:
    """All models of this worker, one engine process each. A new version loads beside the old one.

    What is cold and not loaded is there too, as a report alone.
    """

    def __init__(
        self,
        worker_id: str,
        settings: Settings,
        database: Database,
        writer: JournalWriter,
        doorbells: Doorbells,
        *,
        changed: Callable[[], None],
        metrics: WorkerMetrics | None = None,
        program: Sequence[str] = ENGINE_PROGRAM,
    ) -> None:
        self._worker_id = worker_id
        self._settings = settings
        self._names = set(models) if (models := models_of(settings)) is not None else None
        self._database = database
        self._room = Room(total=settings.worker_memory_bytes, kv=settings.engine_kv_bytes)
        self._resting: frozenset[str] = frozenset()
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

    @property
    def reports(self) -> dict[str, HostingReport]:
        """How everything stands that is wanted here, by deployment."""
        cold = {name: HostingReport(name, HostingState.COLD) for name in self._resting}
        return cold | {model.deployment_id: model.report for model in self.models}

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
        """Start what is needed and not here, unload what is here and not wanted, forget what is gone.

        A cold one rests, once it was idle for long enough. Then K and V are divided among those that are left.
        """
        with self._database.transaction() as session:
            found = wanted_on(session, self._worker_id, self._names)
        if found is None:
            return
        wanted = {each.deployment.id: each for each in found}
        for model in self.models:
            self._tend(model, wanted.get(model.deployment_id))
        for each in wanted.values():
            if each.needed and each.deployment.id not in self._models:
                self._host(each)
        self._rest({name for name in wanted if name not in self._models})
        self._divide()

    def _tend(self, model: HostedModel, wanted: Wanted | None) -> None:
        if model.gone:
            with self._lock:
                del self._models[model.deployment_id]
            self._changed()
        elif wanted is None or not model.serves(wanted.deployment) or _may_rest(model, wanted):
            model.unload()
        else:
            model.wanted = wanted

    def _rest(self, names: Collection[str]) -> None:
        if self._resting != names:
            self._resting = frozenset(names)
            self._changed()

    def _divide(self) -> None:
        """Tell the room what each engine's part of K and V should be, and have it see to that."""
        here = {model.deployment_id: model.wanted for model in self.models if model.state in _ON_THE_DEVICE}
        explicit = {name: wanted.desired.kv_share for name, wanted in here.items()}
        self._room.share_by(kv_shares(explicit, {name: wanted.traffic for name, wanted in here.items()}))
        self._room.rebalance()

    def close(self) -> None:
        """Unload everything and wait until no engine is left."""
        models = self.models
        for model in models:
            model.unload()
        for model in models:
            model.join(_END_SECONDS)

    def _host(self, wanted: Wanted) -> None:
        deployment = wanted.deployment
        model = HostedModel(
            wanted,
            spec_of(deployment, self._settings),
            self._writer,
            room=self._room,
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


def models_of(settings: Settings) -> tuple[str, ...] | None:
    """The names of the models that the worker is set up for; None is all."""
    names = split_names(settings.worker_models)
    return None if "*" in names else names


def split_names(text: str) -> tuple[str, ...]:
    """Names between commas, without blanks and repetitions."""
    return tuple(sorted({name.strip() for name in text.split(",") if name.strip()}))


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
        shares_device=True,
        name=deployment.id,
        trace_folder=settings.trace_folder,
    )


def _may_rest(model: HostedModel, wanted: Wanted) -> bool:
    """Whether it is cold, nobody waits for it, and it has been idle for long enough, or cannot be loaded."""
    if wanted.desired.mode is not HostingMode.COLD or wanted.needed:
        return False
    if model.state is HostingState.READY:
        return model.idle_seconds >= wanted.desired.idle_seconds
    return model.state is HostingState.FAILED
