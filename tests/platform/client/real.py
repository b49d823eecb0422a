"""Fixtures of the real application for client and CLI tests: its `url`, an `api_key`, a client, a `worker` by hand."""

from collections.abc import Iterator

import pytest
from flask import Flask
from penstock import Client
from penstock.auth.services import Scope, create_api_key
from penstock.db import Database
from penstock.jobs.journal import Journal
from penstock.settings import Settings
from redis import Redis

from tests.factories import make_deployment, make_tenant, make_worker
from tests.platform.api.conftest import Worker
from tests.platform.client.live import serving
from tests.serving import renewed


@pytest.fixture
def app(routed: Flask, settings: Settings, database: Database, redis: Redis) -> Iterator[Flask]:
    with renewed(routed, settings, database, redis) as app:
        yield app


@pytest.fixture
def url(app: Flask) -> Iterator[str]:
    with serving(app) as address:
        yield address
        app.extensions["penstock"].stop_streams()


@pytest.fixture
def api_key(database: Database) -> str:
    with database.transaction() as session:
        tenant = make_tenant(session, "default")
        scopes = (Scope.JOBS_READ, Scope.JOBS_WRITE)
        return create_api_key(session, tenant_id=tenant.id, name="t", scopes=scopes, environment="test")[1]


@pytest.fixture
def connected(url: str, api_key: str) -> Iterator[Client]:
    with Client(url, api_key) as client:
        yield client


@pytest.fixture
def worker(database: Database, redis: Redis) -> Worker:
    """Hosts the champion of the model `tiny`, and does by hand what a worker does."""
    with database.transaction() as session:
        deployment = make_deployment(session)
        row = make_worker(session, deployment)
    return Worker(database, Journal(redis, publisher=row.id), row.id, deployment.id)
