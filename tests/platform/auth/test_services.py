"""Tenants, people and keys in the database."""

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import pytest
from argon2 import PasswordHasher
from penstock.auth.models import ApiKey, Tenant, User
from penstock.auth.services import (
    Bootstrap,
    Role,
    Scope,
    admit,
    authenticate,
    bootstrap,
    check_password,
    create_api_key,
    create_tenant,
    create_user,
    kept_password,
    list_api_keys,
    revoke_api_key,
)
from penstock.clock import utc_now
from penstock.db import Database
from penstock.errors import NotFound, Unauthenticated
from penstock.webhooks.signing import sign
from sqlalchemy import func, select

from tests.platform.auth.signing_in import signs_in


@pytest.fixture
def tenant(database: Database) -> Tenant:
    with database.transaction() as session:
        return create_tenant(session, "acme")


def make_key(database: Database, tenant: Tenant, *, expires_at: datetime | None = None) -> tuple[ApiKey, str]:
    with database.transaction() as session:
        return create_api_key(
            session,
            tenant_id=tenant.id,
            name="k",
            scopes=[Scope.JOBS_READ],
            environment="test",
            expires_at=expires_at,
        )


def last_use(database: Database, key: ApiKey) -> datetime | None:
    with database.transaction() as session:
        return session.get_one(ApiKey, key.id).last_used_at


def test_a_tenant_has_a_webhook_secret_that_signs(tenant: Tenant) -> None:
    assert sign(tenant.webhook_secret, "msg_1", 0, b"{}").startswith("v1,")


def test_a_key_names_its_tenant_and_scopes(database: Database, tenant: Tenant) -> None:
    key, secret = make_key(database, tenant)
    with database.transaction() as session:
        principal = authenticate(session, secret, environment="test")

    assert (principal.tenant_id, principal.key_id) == (tenant.id, key.id)
    assert principal.may(Scope.JOBS_READ)
    assert not principal.may(Scope.JOBS_WRITE)


def test_the_secret_is_nowhere_in_the_database(database: Database, tenant: Tenant) -> None:
    _, secret = make_key(database, tenant)
    with database.transaction() as session:
        row = session.execute(select(*ApiKey.__table__.columns)).one()

    assert secret not in str(row)


def test_an_unknown_an_expired_and_a_revoked_key_are_told_apart(database: Database, tenant: Tenant) -> None:
    _, expired = make_key(database, tenant, expires_at=utc_now() - timedelta(seconds=1))
    _, valid = make_key(database, tenant, expires_at=utc_now() + timedelta(hours=1))
    row, revoked = make_key(database, tenant)
    deleted_row, deleted = make_key(database, tenant)
    with database.transaction() as session:
        revoke_api_key(session, tenant.id, row.id)
        session.delete(session.get_one(ApiKey, deleted_row.id))

    with database.transaction() as session:
        assert authenticate(session, valid, environment="test").tenant_id == tenant.id
        for secret, says in ((expired, "expired at"), (revoked, "was revoked at"), (deleted, "no such API key")):
            with pytest.raises(Unauthenticated, match=says):
                authenticate(session, secret, environment="test")


def test_revoking_again_keeps_the_first_time_and_others_cannot(database: Database, tenant: Tenant) -> None:
    key, _ = make_key(database, tenant)
    with database.transaction() as session:
        first = revoke_api_key(session, tenant.id, key.id).revoked_at
    with database.transaction() as session:
        other = create_tenant(session, "other")
        assert revoke_api_key(session, tenant.id, key.id).revoked_at == first
        assert [found.id for found in list_api_keys(session, tenant.id)] == [key.id]
        assert list_api_keys(session, other.id) == []
        with pytest.raises(NotFound):
            revoke_api_key(session, other.id, key.id)


def test_last_use_is_written_at_most_once_a_minute(database: Database, tenant: Tenant) -> None:
    key, secret = make_key(database, tenant)

    def use() -> datetime | None:
        with database.transaction() as session:
            authenticate(session, secret, environment="test")
        return last_use(database, key)

    first = use()
    assert first is not None
    assert use() == first
    with database.transaction() as session:
        session.get_one(ApiKey, key.id).last_used_at = first - timedelta(seconds=61)
    again = use()
    assert again is not None
    assert again >= first


def test_a_request_does_not_wait_for_another_to_note_its_use(database: Database, tenant: Tenant) -> None:
    key, secret = make_key(database, tenant)
    with database.transaction() as holder:
        holder.execute(select(ApiKey).where(ApiKey.id == key.id).with_for_update())
        with database.transaction() as session:
            assert authenticate(session, secret, environment="test").key_id == key.id


def test_a_password_is_checked_and_the_sign_in_noted(database: Database, tenant: Tenant) -> None:
    with database.transaction() as session:
        user = create_user(session, tenant_id=tenant.id, email=" Ann@Example.org ", password="correct horse")
        assert (user.email, user.role, user.last_login_at) == ("ann@example.org", "member", None)
        kept = kept_password(session, "ANN@example.org")
        assert kept is not None
        assert "correct horse" not in kept
        assert kept_password(session, "nobody@example.org") is None
    assert check_password(kept, "wrong") is None
    assert check_password(None, "correct horse") is None
    assert check_password(kept, "correct horse") == kept
    with database.transaction() as session:
        assert admit(session, "ANN@example.org", checked="another hash", keep=kept) is None
        person = admit(session, "ANN@example.org", checked=kept, keep=kept)
        assert person is not None
        assert (person.id, person.password_hash) == (user.id, kept)
        assert person.last_login_at is not None


def test_a_hash_of_older_parameters_is_made_anew(database: Database, tenant: Tenant) -> None:
    old = PasswordHasher(time_cost=1, memory_cost=64).hash("correct horse")
    keep = check_password(old, "correct horse")
    assert keep not in (None, old)
    assert check_password(keep, "correct horse") == keep


def test_the_first_start_makes_an_operator_whose_secrets_work(database: Database) -> None:
    with database.transaction() as session:
        made = bootstrap(session, environment="test")
    assert made is not None

    assert signs_in(database, made.email, made.password)
    with database.transaction() as session:
        user = session.scalars(select(User)).one()
        assert (user.role, user.tenant_id) == (Role.OPERATOR, made.tenant_id)
        assert authenticate(session, made.api_key, environment="test").may(Scope.OPERATOR)


def test_later_starts_make_nothing(database: Database) -> None:
    with database.transaction() as session:
        bootstrap(session, environment="test")
    with database.transaction() as session:
        assert bootstrap(session, environment="test") is None
        assert session.scalar(select(func.count()).select_from(User)) == 1


def test_of_many_first_starts_at_once_one_makes_it(database: Database) -> None:
    def start(_: int) -> Bootstrap | None:
        with database.transaction() as session:
            return bootstrap(session, environment="test")

    with ThreadPoolExecutor(6) as pool:
        made = [result for result in pool.map(start, range(6)) if result is not None]

    assert len(made) == 1
    with database.transaction() as session:
        assert session.scalar(select(func.count()).select_from(Tenant)) == 1
