"""An MLflow that is not ours: it stands alone, and asks for a name and a password."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Final

import httpx
import pytest
from penstock.db import Database
from penstock.embedded import EmbeddedServices
from penstock.embedded.child import Command
from penstock.embedded.mlflow import MLflow
from penstock.registry.mlflow_sync import Synchroniser
from penstock.settings import Settings
from pydantic import SecretStr

from tests.platform.registry.conftest import Registrar

OPERATOR, PASSWORD = "operator", "correct-horse-battery-staple"
SCRIPT: Final = Path(__file__).with_name("external_mlflow.py")
ACCOUNTS: Final = """
[mlflow]
default_permission = READ
database_uri = sqlite:///accounts.db
auth_cache_ttl_seconds = 600
"""


class ExternalMlflow(MLflow):
    """`mlflow server --app-name basic-auth`; it shares its tables with the one that other tests start."""

    name = "mlflow-external"

    def command(self) -> Command:
        plain = super().command()
        remembered = plain.folder / "accounts.ini"  # checking a password is meant to take long: it is done once
        remembered.write_text(ACCOUNTS)
        accounts = {
            "MLFLOW_AUTH_CONFIG_PATH": str(remembered),
            "MLFLOW_AUTH_ADMIN_USERNAME": OPERATOR,
            "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "only-for-tests",
        }
        return replace(plain, arguments=("-W", "ignore", str(SCRIPT)), environment={**plain.environment, **accounts})


@pytest.fixture(scope="session")
def external_mlflow(services: EmbeddedServices) -> str:
    """Its address, without a name or password; it ends with the test's services."""
    assert services.postgres is not None
    port = services.folder.port(ExternalMlflow.name, None, "")
    server = ExternalMlflow(services.folder, services.secrets, port, services.postgres.url("mlflow"))
    services.supervisor.start(server)
    return server.url


@pytest.fixture
def registry_settings(settings: Settings, external_mlflow: str) -> Settings:
    """Settings for a test with an empty registry."""
    models = httpx.Client(base_url=f"{external_mlflow}/api/2.0/mlflow/registered-models/", auth=(OPERATOR, PASSWORD))
    with models as http:
        found = http.get("search", params={"max_results": 1000}).raise_for_status().json()
        for model in found.get("registered_models", []):
            http.request("DELETE", "delete", json={"name": model["name"]}).raise_for_status()
    return settings.model_copy(
        update={
            "mlflow_tracking_uri": external_mlflow,
            "mlflow_tracking_username": OPERATOR,
            "mlflow_tracking_password": SecretStr(PASSWORD),
            "model_poll_seconds": 0.05,
        }
    )


@pytest.fixture
def synchroniser(database: Database, registry_settings: Settings) -> Iterator[Synchroniser]:
    """Follows the registry into the test database."""
    with closing(Synchroniser(database, registry_settings)) as following:
        yield following


@pytest.fixture
def registrar(registry_settings: Settings, external_mlflow: str, tmp_path: Path) -> Registrar:
    """Makes versions in the registry, as the operator."""
    known = external_mlflow.replace("://", f"://{OPERATOR}:{PASSWORD}@")
    return Registrar(registry_settings.model_copy(update={"mlflow_tracking_uri": known}), tmp_path)
