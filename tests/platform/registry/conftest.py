"""A real MLflow server, started once for all tests of this folder, with an empty registry before each test."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from penstock.db import Database
from penstock.embedded import EmbeddedServices
from penstock.embedded.mlflow import MLflow
from penstock.registry.folder import describe
from penstock.registry.mlflow_api import MlflowApi
from penstock.registry.mlflow_sync import Synchroniser
from penstock.registry.version_tags import to_tags
from penstock.settings import Settings

from tests.platform.registry.model_folders import make_folder


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
def synchroniser(database: Database, registry_settings: Settings) -> Iterator[Synchroniser]:
    """Follows the registry into the test database."""
    with closing(Synchroniser(database, registry_settings)) as following:
        yield following


class Registrar:
    """Registers folders that differ in their weights alone, over REST: `register` takes ten times as long."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings, self._folder, self._made = settings, folder, 0

    def __call__(self, name: str = "tiny", *, alias: str | None = None) -> str:
        """Register a new folder; answers with the version's number."""
        self._made += 1
        folder = describe(make_folder(self._folder / f"weights-{self._made}", seed=self._made))
        self.ask("POST", "registered-models/create", name=name)  # refused when it is there, which is as good
        tags = [{"key": key, "value": value} for key, value in to_tags(folder).items()]
        made = self.ask("POST", "model-versions/create", name=name, source="s3://bucket/model", tags=tags)
        version = str(made.raise_for_status().json()["model_version"]["version"])
        if alias is not None:
            self.ask("POST", "registered-models/alias", name=name, alias=alias, version=version).raise_for_status()
        return version

    def ask(self, method: str, call: str, **body: Any) -> httpx.Response:
        """One call of MLflow's REST API, as an operator makes it in MLflow itself."""
        return httpx.request(method, f"{self.settings.mlflow_tracking_uri}/api/2.0/mlflow/{call}", json=body)


@pytest.fixture
def registrar(registry_settings: Settings, tmp_path: Path) -> Registrar:
    """Makes versions in the real registry."""
    return Registrar(registry_settings, tmp_path)
