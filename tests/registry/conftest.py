"""A real MLflow server, started once for all tests of this folder, with an empty registry before each test."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from penstock.db import Database
from penstock.embedded import EmbeddedServices
from penstock.embedded.mlflow import MLflow
from penstock.registry.folder import describe
from penstock.registry.mlflow_api import MlflowApi
from penstock.registry.mlflow_sync import Synchroniser
from penstock.registry.registration import register
from penstock.settings import Settings

from tests.registry.model_folders import make_folder


@pytest.fixture(scope="session")
def mlflow_server(services: EmbeddedServices) -> str:
    """The address of a real MLflow on the test's PostgreSQL; it ends with the test's services."""
    assert services.postgres is not None
    port = services.folder.port("mlflow", None, "--mlflow-port")
    server = MLflow(services.folder, services.secrets, port, services.postgres.url("mlflow"))
    services.supervisor.start(server)
    return server.url


@pytest.fixture
def registry_settings(settings: Settings, mlflow_server: str) -> Settings:
    """Settings for a test with an empty registry."""
    with httpx.Client(base_url=f"{mlflow_server}/api/2.0/mlflow/registered-models/") as http:
        found = http.get("search", params={"max_results": 1000}).json().get("registered_models", [])
        for model in found:
            http.request("DELETE", "delete", json={"name": model["name"]}).raise_for_status()
    return settings.model_copy(update={"mlflow_tracking_uri": mlflow_server, "model_poll_seconds": 0.05})


@pytest.fixture
def mlflow(registry_settings: Settings) -> Iterator[MlflowApi]:
    """Our client of the registry."""
    with MlflowApi(registry_settings) as api:
        yield api


@pytest.fixture
def synchroniser(database: Database, registry_settings: Settings) -> Synchroniser:
    """Follows the registry into the test database."""
    return Synchroniser(database, registry_settings)


class Registrar:
    """Registers model folders that differ in nothing but their weights."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings, self._folder, self._made = settings, folder, 0

    def new_folder(self) -> Path:
        self._made += 1
        return make_folder(self._folder / f"weights-{self._made}", seed=self._made)

    def __call__(self, name: str = "tiny", *, alias: str | None = None) -> str:
        """Register a new folder; answers with the version's number."""
        return register(self.settings, describe(self.new_folder()), name, alias=alias).version


@pytest.fixture
def registrar(registry_settings: Settings, tmp_path: Path) -> Registrar:
    """Makes versions in the real registry."""
    return Registrar(registry_settings, tmp_path)
