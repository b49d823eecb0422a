"""MLflow's webhooks: taken only as MLflow signs them, and they make whoever follows the registry look at once."""

import base64
import hashlib
import hmac
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from flask.testing import FlaskClient
from penstock.app import create_app
from penstock.db import Database
from penstock.errors import Unauthenticated
from penstock.registry.hints import EVENTS, PATH, Hints, verify
from penstock.registry.mlflow_api import MlflowApi
from penstock.registry.mlflow_sync import Synchroniser
from penstock.registry.models import RoutingPolicy
from penstock.settings import Settings
from pydantic import SecretStr
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from werkzeug.serving import make_server

from tests.platform.registry.conftest import Registrar

SECRET = "a secret of more than enough letters"
PATIENCE = 30.0
BODY = b'{"entity": "model_version_alias", "action": "created"}'


def signed(secret: str = SECRET, *, at: float | None = None, body: bytes = BODY) -> dict[str, str]:
    """The headers that MLflow sends with `body`."""
    timestamp = str(int(time.time() if at is None else at))
    told = b"d-1." + timestamp.encode() + b"." + body
    digest = base64.b64encode(hmac.digest(secret.encode(), told, hashlib.sha256)).decode()
    return {"X-MLflow-Delivery-Id": "d-1", "X-MLflow-Timestamp": timestamp, "X-MLflow-Signature": f"v1,{digest}"}


@pytest.fixture
def hints(redis: Redis) -> Hints:
    return Hints(redis)


@pytest.fixture
def hook_settings(registry_settings: Settings) -> Settings:
    """Settings of a platform that takes hints."""
    return registry_settings.model_copy(update={"registry_webhook_secret": SecretStr(SECRET)})


@pytest.fixture
def client(hook_settings: Settings, database: Database, redis: Redis) -> FlaskClient:
    return create_app(hook_settings, database=database, redis=redis).test_client()


def wakes(hints: Hints, *, seconds: float = 0.05) -> bool:
    """Whether a hint is there."""
    begun = time.monotonic()
    hints.wait(seconds, threading.Event())
    return time.monotonic() - begun < seconds


def test_a_signed_hint_wakes_whoever_waits(client: FlaskClient, hints: Hints) -> None:
    assert client.post(PATH, data=BODY, headers=signed()).status_code == 204
    assert wakes(hints)


def test_many_hints_are_one(hints: Hints) -> None:
    for _ in range(3):
        hints.give()
    assert wakes(hints)
    assert not wakes(hints)


@pytest.mark.parametrize(
    ("headers", "names"),
    [
        ({}, "X-MLflow-Signature"),
        (signed("another secret altogether"), "X-MLflow-Signature"),
        (signed(body=b"{}"), "X-MLflow-Signature"),
        (signed(at=time.time() - 3600), "X-MLflow-Timestamp"),
        (signed(at=time.time() + 3600), "X-MLflow-Timestamp"),
    ],
)
def test_a_hint_that_mlflow_did_not_just_sign_is_refused(
    client: FlaskClient, hints: Hints, headers: dict[str, str], names: str
) -> None:
    answer = client.post(PATH, data=BODY, headers=headers)
    assert answer.status_code == 401
    assert names in answer.get_json()["detail"]
    assert not wakes(hints)


def test_a_time_that_is_no_number_is_refused() -> None:
    headers = {"X-Mlflow-Delivery-Id": "d", "X-Mlflow-Timestamp": "soon"}
    told = b"d.soon." + BODY
    signature = base64.b64encode(hmac.digest(SECRET.encode(), told, hashlib.sha256)).decode()
    with pytest.raises(Unauthenticated, match="Timestamp"):
        verify(SECRET, headers | {"X-Mlflow-Signature": f"v1,{signature}"}, BODY, now=time.time())


def test_without_a_secret_there_is_no_such_route(registry_settings: Settings, database: Database, redis: Redis) -> None:
    client = create_app(registry_settings, database=database, redis=redis).test_client()
    answer = client.post(PATH, data=BODY, headers=signed())
    assert (answer.status_code, answer.get_json()["code"]) == (404, "not_found")


def test_waiting_ends_with_the_process(hints: Hints) -> None:
    stop = threading.Event()
    waiting = threading.Thread(target=hints.wait, args=(3600.0, stop), daemon=True)
    waiting.start()
    stop.set()
    waiting.join(PATIENCE)
    assert not waiting.is_alive()


def test_without_redis_whoever_waits_looks_by_the_clock() -> None:
    away = Redis(port=1, retry=Retry(NoBackoff(), 0))
    begun = time.monotonic()
    Hints(away).wait(0.2, threading.Event())
    assert time.monotonic() - begun >= 0.2


@pytest.fixture
def web(hook_settings: Settings, database: Database, redis: Redis) -> Iterator[str]:
    """The web process's address, over real HTTP."""
    server = make_server("127.0.0.1", 0, create_app(hook_settings, database=database, redis=redis), threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()


def test_mlflow_tells_of_an_alias_and_it_is_followed_long_before_the_clock_says(
    hook_settings: Settings, database: Database, hints: Hints, web: str, mlflow: MlflowApi, registrar: Registrar
) -> None:
    never = hook_settings.model_copy(update={"model_poll_seconds": 3600.0, "registry_webhook_url": web})
    registrar("tiny", alias="champion")
    with closing(Synchroniser(database, never, hints)) as synchroniser:
        synchroniser.tick()  # makes the webhook
        stop = threading.Event()
        following = threading.Thread(target=synchroniser.run, args=(stop,))
        following.start()
        try:
            follow_by_hint(registrar, database)
        finally:
            stop.set()
            hints.give()
            following.join()
    made = [each for each in mlflow._pages("webhooks", "webhooks", {}) if each["url"] == web + PATH]
    assert [len(each["events"]) for each in made] == [len(EVENTS)]


def follow_by_hint(registrar: Registrar, database: Database) -> None:
    """Move an alias until it is followed: MLflow remembers for two seconds who is to be told."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        registrar("told", alias="champion")
        patience = time.monotonic() + 3.0
        while time.monotonic() < patience:
            with database.transaction() as session:
                if session.get(RoutingPolicy, "told") is not None:
                    return
            time.sleep(0.02)
    raise AssertionError("no hint of MLflow's was followed")


def test_a_webhook_is_made_once_for_a_url(hook_settings: Settings, mlflow: MlflowApi, database: Database) -> None:
    told = hook_settings.model_copy(update={"registry_webhook_url": "http://127.0.0.1:9"})
    for _ in range(2):
        with closing(Synchroniser(database, told)) as synchroniser:
            synchroniser.tick()
    made = [each for each in mlflow._pages("webhooks", "webhooks", {}) if each["url"].startswith("http://127.0.0.1:9/")]
    assert len(made) == 1


def test_a_registry_that_takes_no_webhook_is_followed_all_the_same(
    hook_settings: Settings, database: Database, registrar: Registrar
) -> None:
    odd = hook_settings.model_copy(update={"registry_webhook_url": "ftp://127.0.0.1"})
    registrar("tiny", alias="champion")
    with closing(Synchroniser(database, odd)) as synchroniser:
        assert synchroniser.tick()
    with database.transaction() as session:
        assert session.get(RoutingPolicy, "tiny") is not None
