"""The MLflow server as it runs here: one process, on PostgreSQL, closed to other hosts' pages."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from penstock.embedded import EmbeddedServices

from tests.platform.embedded.probes import connect


@pytest.fixture(scope="module")
def services() -> Iterator[EmbeddedServices]:
    """All three services, running while this module's tests do."""
    folder = Path(tempfile.mkdtemp(prefix="penstock-test-"))
    with EmbeddedServices(folder, durable=False) as running:
        yield running
    shutil.rmtree(folder)


@pytest.fixture
def registry(services: EmbeddedServices) -> Iterator[httpx.Client]:
    """A client of MLflow's REST API."""
    with httpx.Client(base_url=f"{services.tracking_uri}/api/2.0/mlflow", trust_env=False) as client:
        yield client


def test_a_registered_model_is_a_row_in_its_own_database(services: EmbeddedServices, registry: httpx.Client) -> None:
    assert registry.post("/registered-models/create", json={"name": "invoice-extractor"}).is_success
    assert services.postgres is not None
    with connect(services.postgres.url("mlflow")) as connection:
        assert connection.execute("SELECT name FROM registered_models").fetchall() == [("invoice-extractor",)]


def test_it_is_one_process_with_its_password_on_no_command_line(services: EmbeddedServices) -> None:
    process = psutil.Process(services.supervisor.processes["mlflow"])
    assert process.children(recursive=True) == []
    assert services.secrets.mlflow_password not in " ".join(process.cmdline())


def test_it_runs_no_jobs_of_its_own(services: EmbeddedServices) -> None:
    environment = psutil.Process(services.supervisor.processes["mlflow"]).environ()
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert environment["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_artifacts_land_in_the_state_folder(services: EmbeddedServices) -> None:
    base = f"{services.tracking_uri}/api/2.0/mlflow-artifacts/artifacts"
    assert httpx.put(f"{base}/note.txt", content=b"kept", trust_env=False).is_success
    assert (services.folder.mlflow / "artifacts/note.txt").read_bytes() == b"kept"


def test_a_page_of_another_host_cannot_reach_it(registry: httpx.Client) -> None:
    assert registry.get("/registered-models/search").status_code == 200
    rebound = registry.get("/registered-models/search", headers={"Host": "attacker.example"})
    assert rebound.status_code == 403


def test_it_listens_on_the_loopback_address_alone(services: EmbeddedServices) -> None:
    process = psutil.Process(services.supervisor.processes["mlflow"])
    listening = [c.laddr.ip for c in process.net_connections("inet") if c.status == "LISTEN"]
    assert listening == ["127.0.0.1"]
