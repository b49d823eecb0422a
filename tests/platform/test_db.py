"""Connections that broke while they lay in the pool."""

import time
from collections.abc import Iterator

import pytest
from penstock.db import Database
from penstock.settings import Settings
from sqlalchemy import text
from sqlalchemy.exc import OperationalError


@pytest.fixture
def single(settings: Settings, database: Database) -> Iterator[Database]:
    """A pool of one connection, which the server has ended since it was used."""
    pool = Database(settings, pool_size=1)
    with pool.transaction() as session:
        process = session.scalar(text("SELECT pg_backend_pid()"))
    with database.transaction() as session:
        assert session.scalar(text("SELECT pg_terminate_backend(:process, 10000)"), {"process": process})
    yield pool
    pool.close()


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + seconds)


def test_a_connection_that_lay_idle_is_asked_and_replaced(single: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    later(monkeypatch, 1.5)
    with single.transaction() as session:
        assert session.scalar(text("SELECT 1")) == 1


def test_one_that_was_used_a_moment_ago_is_trusted_and_its_loss_costs_one_transaction(
    single: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    later(monkeypatch, 0.0)
    with pytest.raises(OperationalError), single.transaction() as session:
        session.scalar(text("SELECT 1"))
    with single.transaction() as session:
        assert session.scalar(text("SELECT 1")) == 1
