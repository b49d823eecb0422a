"""A registry of somebody else's, behind names and passwords: followed with the right ones, and told plainly without."""

import httpx
import pytest
from penstock.db import Database
from penstock.errors import ServiceUnavailable
from penstock.registry.mlflow_api import MlflowApi
from penstock.registry.mlflow_sync import Synchroniser
from penstock.registry.models import Deployment, RoutingPolicy
from penstock.settings import Settings
from pydantic import SecretStr

from tests.platform.registry.conftest import Registrar
from tests.registry.conftest import OPERATOR, PASSWORD


def champion(database: Database) -> str | None:
    """The version that serves the model `tiny`."""
    with database.transaction() as session:
        policy = session.get(RoutingPolicy, "tiny")
        served = policy.champion_id if policy is not None else None
        return session.get_one(Deployment, served).model_version if served is not None else None


def test_it_asks_who_one_is(external_mlflow: str, registry_settings: Settings) -> None:
    assert httpx.get(f"{external_mlflow}/api/2.0/mlflow/registered-models/search").status_code == 401
    with MlflowApi(registry_settings) as api:
        api.ping()


def test_wrong_credentials_are_told_plainly_and_change_nothing(
    database: Database, registry_settings: Settings, synchroniser: Synchroniser, registrar: Registrar
) -> None:
    registrar(alias="champion")
    synchroniser.tick()
    registrar(alias="champion")
    guess: dict[str, object] = {"mlflow_tracking_password": SecretStr("a guess")}
    for wrong in (guess, {"mlflow_tracking_username": "nobody"}, {"mlflow_tracking_username": None}):
        stranger = Synchroniser(database, registry_settings.model_copy(update=wrong))
        with pytest.raises(ServiceUnavailable, match="refuses our credentials; set MLFLOW_TRACKING_USERNAME") as told:
            stranger.tick()
        stranger.close()
        assert PASSWORD not in told.value.message
    assert champion(database) == "1"
    synchroniser.tick()
    assert champion(database) == "2"


def test_the_name_may_stand_in_the_address(
    database: Database, registry_settings: Settings, external_mlflow: str, registrar: Registrar
) -> None:
    registrar(alias="champion")
    address = external_mlflow.replace("://", f"://{OPERATOR}:{PASSWORD}@")
    known = {"mlflow_tracking_uri": address, "mlflow_tracking_username": None, "mlflow_tracking_password": None}
    following = Synchroniser(database, registry_settings.model_copy(update=known))
    following.tick()
    following.close()
    assert champion(database) == "1"
