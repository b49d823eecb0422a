"""What the page on metrics lists is what the processes expose, and the other way round."""

import re
from collections.abc import Iterator

import httpx
import pytest
from penstock.db import Database
from penstock.errors import SettingsError
from penstock.metrics import ControlMetrics, Metrics, MetricsServer, serve_metrics
from penstock.settings import Settings
from penstock.web import _Application
from penstock_worker.energy import EnergyMeter
from penstock_worker.worker_metrics import WorkerMetrics
from prometheus_client import CollectorRegistry

from tests.conftest import ROOT

_ROW = re.compile(r"^\| `([a-z_:0-9]+)` \| (counter|gauge|histogram) \| ([^|]*)\|", re.MULTILINE)
_ENGINE_LABELS = ("model_name", "model_version", "engine")


def documented(section: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Each metric of a section of the page, with its kind and labels."""
    page = (ROOT / "docs/metrics.md").read_text()
    (part,) = [part for part in page.split("\n## ") if part.startswith(section)]
    found = {}
    for name, kind, labels in _ROW.findall(part):
        own = re.findall(r"`([a-z_]+)`", labels)
        found[name] = (kind, tuple([*_ENGINE_LABELS, *own] if labels.startswith("engine's") else own))
    return found


def exposed(registry: CollectorRegistry) -> dict[str, tuple[str, tuple[str, ...]]]:
    """The same of a registry, from what its collectors declare."""
    found = {}
    for collector in list(registry._collector_to_names):
        if hasattr(collector, "_labelnames"):
            found[collector._name] = (collector._type, tuple(collector._labelnames))  # type: ignore[attr-defined]
        else:
            found |= {
                family.name: (family.type, tuple(family._labelnames))  # type: ignore[attr-defined]
                for family in collector.collect()
            }
    return found


def test_the_web_processs_metrics_are_documented(database: Database) -> None:
    assert documented("Web") == exposed(Metrics(database, lambda: 0).registry)


def test_the_control_processs_metrics_are_documented() -> None:
    assert documented("Control") == exposed(ControlMetrics().registry)


def test_the_workers_metrics_are_documented() -> None:
    metrics = WorkerMetrics()
    metrics.watch_energy("GPU-1", EnergyMeter(lambda: 5.0, None))
    assert documented("Worker") == exposed(metrics.registry)


@pytest.fixture
def server() -> Iterator[MetricsServer]:
    server = MetricsServer(ControlMetrics().registry, "127.0.0.1", 0)
    yield server
    server.close()


def test_they_are_served_over_http(server: MetricsServer) -> None:
    answer = httpx.get(f"http://127.0.0.1:{server.port}/metrics")
    assert answer.status_code == 200
    assert "penstock_leases_expired_total 0.0" in answer.text


def test_a_port_that_is_taken_is_refused_by_the_settings_name(server: MetricsServer) -> None:
    with pytest.raises(SettingsError, match=f"PENSTOCK_WORKER_METRICS_PORT: cannot listen on 127.0.0.1:{server.port}"):
        serve_metrics(CollectorRegistry(), "127.0.0.1", server.port, "PENSTOCK_WORKER_METRICS_PORT")


def test_without_a_port_nothing_is_served() -> None:
    assert serve_metrics(CollectorRegistry(), "127.0.0.1", None, "PENSTOCK_WORKER_METRICS_PORT") is None


def test_the_web_server_is_one_process_so_its_counters_are_whole(settings: Settings) -> None:
    application = object.__new__(_Application)
    application._settings, application._listener = settings, 0
    assert application._configuration()["workers"] == 1
