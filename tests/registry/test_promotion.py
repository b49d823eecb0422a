"""An operator promotes a version in MLflow itself: by its client, or in its pages. It serves as soon as MLflow tells.

MLflow's signed webhook goes over real HTTP to the web process, from there to whoever follows the registry, whose clock
would look again in an hour.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import httpx
import pytest
from mlflow import MlflowClient
from penstock.app import create_app
from penstock.db import Database
from penstock.registry.hints import PATH, Hints
from penstock.registry.mlflow_sync import Synchroniser
from penstock.settings import Settings
from pydantic import SecretStr
from redis import Redis
from werkzeug.serving import make_server

from tests.platform.registry.conftest import Registrar
from tests.registry.conftest import OPERATOR, PASSWORD
from tests.registry.test_external_mlflow import champion

PATIENCE = 30.0
MLFLOW_REMEMBERS = 3.0
"""For two seconds MLflow knows who is to be told without looking."""


@pytest.fixture
def platform(registry_settings: Settings, database: Database, redis: Redis) -> Iterator[Settings]:
    """A web process that takes MLflow's hints, and the one who follows the registry by them alone."""
    secret = SecretStr("a secret of more than enough letters")
    told = registry_settings.model_copy(update={"registry_webhook_secret": secret, "model_poll_seconds": 3600.0})
    server = make_server("127.0.0.1", 0, create_app(told, database=database, redis=redis), threaded=True)
    told = told.model_copy(update={"registry_webhook_url": f"http://127.0.0.1:{server.server_port}"})
    hints, stop = Hints(redis), threading.Event()
    with closing(Synchroniser(database, told, hints)) as synchroniser:
        synchroniser.tick()  # asks MLflow for its webhook
        threads = [
            threading.Thread(target=server.serve_forever),
            threading.Thread(target=synchroniser.run, args=(stop,)),
        ]
        for thread in threads:
            thread.start()
        yield told
        stop.set()
        hints.give()
        server.shutdown()
        for thread in threads:
            thread.join()


@pytest.fixture
def client(platform: Settings, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """MLflow's own, signed in."""
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", OPERATOR)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    return MlflowClient(platform.mlflow_tracking_uri)


def followed(move: Callable[[], object], database: Database, version: str) -> bool:
    """Whether the move was, made again for as long as MLflow may not know yet whom to tell."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        move()
        patience = time.monotonic() + MLFLOW_REMEMBERS
        while time.monotonic() < patience:
            if champion(database) == version:
                return True
            time.sleep(0.02)
    return False


def test_what_is_promoted_in_mlflow_serves(
    platform: Settings, client: MlflowClient, database: Database, registrar: Registrar, external_mlflow: str
) -> None:
    for _ in range(2):
        registrar()
    assert champion(database) is None
    assert followed(lambda: client.set_registered_model_alias("tiny", "champion", "1"), database, "1")

    def in_its_pages() -> None:
        told = {"name": "tiny", "alias": "champion", "version": "2"}
        answer = httpx.post(
            f"{external_mlflow}/ajax-api/2.0/mlflow/registered-models/alias",
            json=told,
            auth=(OPERATOR, PASSWORD),
            headers={"Origin": external_mlflow},
        )
        answer.raise_for_status()

    assert followed(in_its_pages, database, "2")
    assert client.get_model_version_by_alias("tiny", "champion").version == "2"


def test_nobody_else_promotes(platform: Settings, database: Database, registrar: Registrar) -> None:
    """A hint that MLflow did not sign is refused, and MLflow lets only those move an alias who may."""
    registrar(alias="champion")
    registrar()
    assert httpx.post(f"{platform.registry_webhook_url}{PATH}", content=b"{}").status_code == 401
    move = {"name": "tiny", "alias": "champion", "version": "2"}
    address = f"{platform.mlflow_tracking_uri}/ajax-api/2.0/mlflow/registered-models/alias"
    assert httpx.post(address, json=move, auth=("somebody", "a guess")).status_code == 401
    assert (
        registrar.ask("GET", "registered-models/alias?name=tiny&alias=champion").json()["model_version"]["version"]
        == "1"
    )
