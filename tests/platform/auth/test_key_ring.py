"""What a process remembers of keys, and for how long."""

import time

import pytest
from penstock.auth.key_ring import REMEMBERED_SECONDS, KeyRing
from penstock.auth.keys import generate_key
from penstock.auth.services import Scope, create_api_key, create_tenant, revoke_api_key
from penstock.db import Database
from penstock.errors import Unauthenticated


@pytest.fixture
def secret(database: Database) -> str:
    with database.transaction() as session:
        tenant = create_tenant(session, "acme")
        _, secret = create_api_key(session, tenant_id=tenant.id, name="k", scopes=[Scope.JOBS_READ], environment="test")
    return secret


def revoke_everything(database: Database) -> None:
    with database.transaction() as session:
        for key_id, tenant_id in session.connection().exec_driver_sql("SELECT id, tenant_id FROM api_key"):
            revoke_api_key(session, tenant_id, key_id)


def test_a_key_that_was_just_seen_costs_the_database_nothing(database: Database, secret: str) -> None:
    ring = KeyRing(database, "test", seconds=3600)
    first = ring.principal(secret)
    revoke_everything(database)

    assert ring.principal(secret) == first  # so nothing was asked


def test_a_revoked_key_is_refused_within_seconds(database: Database, secret: str) -> None:
    ring = KeyRing(database, "test")
    ring.principal(secret)
    revoke_everything(database)
    time.sleep(REMEMBERED_SECONDS)

    with pytest.raises(Unauthenticated, match="was revoked"):
        ring.principal(secret)


def test_an_unknown_key_is_not_remembered_as_such(database: Database, secret: str) -> None:
    ring = KeyRing(database, "test", seconds=3600)
    with pytest.raises(Unauthenticated, match="no such API key"):
        ring.principal(generate_key("test"))
    with pytest.raises(Unauthenticated, match="mistyped"):
        ring.principal(secret[:-1] + ("a" if secret[-1] != "a" else "b"))

    assert ring.principal(secret).may(Scope.JOBS_READ)
