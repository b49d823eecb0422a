"""The synchroniser outlives MLflow and the database being away, and of several one acts at a time."""

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

import pytest
import structlog
from penstock.db import Database
from penstock.errors import ServiceUnavailable
from penstock.registry.mlflow_sync import Synchroniser
from penstock.registry.models import Deployment, RoutingPolicy
from penstock.settings import Settings
from pydantic import SecretStr
from sqlalchemy import select

from tests.patience import eventually
from tests.platform.registry.conftest import Registrar
from tests.platform.registry.outage import way_to


@contextmanager
def running(synchroniser: Synchroniser) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=synchroniser.run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def at(settings: Settings, address: str) -> Settings:
    return settings.model_copy(update={"mlflow_tracking_uri": address})


def champion(database: Database) -> str | None:
    with database.transaction() as session:
        policy = session.get(RoutingPolicy, "tiny")
        if policy is None or policy.champion_id is None:
            return None
        return session.get_one(Deployment, policy.champion_id).model_version


def test_it_follows_until_it_is_told_to_stop(
    database: Database, synchroniser: Synchroniser, registrar: Registrar
) -> None:
    with running(synchroniser):
        registrar(alias="champion")
        eventually(lambda: champion(database) == "1", "version 1 as the champion")
        registrar(alias="champion")
        eventually(lambda: champion(database) == "2", "version 2 as the champion")


def test_without_an_address_it_says_so_and_ends(database: Database, settings: Settings) -> None:
    synchroniser = Synchroniser(database, settings)
    with structlog.testing.capture_logs() as logs:
        synchroniser.run(threading.Event())
    assert [line["event"] for line in logs] == ["registry.not_configured"]
    with pytest.raises(ServiceUnavailable, match="MLFLOW_TRACKING_URI"):
        synchroniser.tick()


def test_an_outage_changes_nothing_and_is_said_once(
    database: Database, registry_settings: Settings, registrar: Registrar
) -> None:
    registrar(alias="champion")
    assert registry_settings.mlflow_tracking_uri is not None
    with structlog.testing.capture_logs() as logs, way_to(registry_settings.mlflow_tracking_uri) as way:

        def said(event: str) -> int:
            return [line["event"] for line in logs].count(event)

        synchroniser = Synchroniser(database, at(registry_settings, way.url))
        with running(synchroniser):
            eventually(lambda: champion(database) == "1", "version 1 as the champion")
            way.cut()
            eventually(lambda: synchroniser.failures >= 3, "three failed turns")
            registrar(alias="champion")
            assert champion(database) == "1"
            assert said("registry.unreachable") == 1
            way.open = True
            eventually(lambda: champion(database) == "2", "version 2 as the champion")
            eventually(lambda: said("registry.followed_again") == 1, "word of it")


def test_a_tick_without_mlflow_raises_and_changes_nothing(
    database: Database, synchroniser: Synchroniser, registry_settings: Settings, registrar: Registrar
) -> None:
    registrar(alias="champion")
    synchroniser.tick()
    away = at(registry_settings, "http://127.0.0.1:1")
    with closing(Synchroniser(database, away)) as following, pytest.raises(ServiceUnavailable, match=r"127\.0\.0\.1:1"):
        following.tick()
    assert champion(database) == "1"


def test_pauses_grow_while_it_fails_and_stay_short(database: Database, registry_settings: Settings) -> None:
    with closing(Synchroniser(database, at(registry_settings, "http://127.0.0.1:1"))) as following:
        pauses = [following.attempt() for _ in range(14)]
    assert pauses == sorted(pauses)
    assert pauses[0] == pytest.approx(0.1)
    assert pauses[-1] == 5.0


def test_it_outlives_a_database_that_is_away(registry_settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    url = SecretStr(f"postgresql+psycopg://nobody:x@127.0.0.1:{port}/none")
    database = Database(registry_settings.model_copy(update={"database_url": url}))
    with structlog.testing.capture_logs() as logs, closing(Synchroniser(database, registry_settings)) as following:
        assert following.attempt() > 0
    assert [line["event"] for line in logs] == ["registry.unreachable"]
    database.close()


def test_of_several_one_acts_at_a_time(
    database: Database, synchroniser: Synchroniser, registry_settings: Settings, registrar: Registrar
) -> None:
    registrar(alias="champion")
    with closing(Synchroniser(database, registry_settings)) as other:
        with other.elected() as session:
            assert session is not None
            assert not synchroniser.tick()
        assert champion(database) is None
        assert synchroniser.tick()
        assert champion(database) == "1"


def test_many_at_once_make_one_deployment(
    database: Database, registry_settings: Settings, registrar: Registrar
) -> None:
    registrar(alias="champion")
    with ExitStack() as stack:
        several = [stack.enter_context(closing(Synchroniser(database, registry_settings))) for _ in range(4)]
        threads = [threading.Thread(target=one.tick) for one in several]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    with database.transaction() as session:
        assert len(session.scalars(select(Deployment)).all()) == 1
