"""Every change to who may do what: what it does, who may make it, and that it is written down."""

from concurrent.futures import ThreadPoolExecutor, wait
from datetime import timedelta
from typing import Any

import pytest
from penstock.auth.administration import Administration, UserChange
from penstock.auth.audit import Action, Actor, ActorKind, AuditFilter, list_entries
from penstock.auth.models import AuditEntry, Tenant
from penstock.auth.services import Role, Scope, authenticate, create_tenant, list_api_keys, list_users
from penstock.clock import utc_now
from penstock.db import Database
from penstock.errors import AlreadyExists, Forbidden, LastAdministrator, NotFound, Unauthenticated, ValidationFailed
from sqlalchemy import update
from sqlalchemy.exc import DBAPIError

from tests.platform.auth.signing_in import signs_in

OPERATOR = Actor(ActorKind.COMMAND, "root", "root on the command line", "host", tuple(Scope))
ADMIN = Actor(ActorKind.API_KEY, "key_1", "ci", "10.0.0.1", (Scope.ADMIN,))
ANN, PASSWORD = "ann@example.com", "correct horse battery"


@pytest.fixture
def tenant(database: Database) -> Tenant:
    with database.transaction() as session:
        return create_tenant(session, "acme")


def record_of(database: Database, tenant: Tenant) -> list[tuple[str, str, dict[str, Any]]]:
    """What was done in the tenant, oldest first."""
    with database.transaction() as session:
        entries, _ = list_entries(session, AuditFilter(tenant.id), limit=100)
    return [(entry.action, entry.target, entry.details) for entry in reversed(entries)]


def make_user(database: Database, tenant: Tenant, email: str = ANN, role: Role = Role.MEMBER) -> str:
    with database.transaction() as session:
        user, _ = Administration(session, OPERATOR).create_user(tenant.id, email=email, role=role, password=PASSWORD)
        return user.id


def change(database: Database, tenant: Tenant, user_id: str, *, actor: Actor = ADMIN, **changes: Any) -> None:
    with database.transaction() as session:
        Administration(session, actor).change_user(tenant.id, user_id, UserChange(**changes))


def test_a_key_is_made_used_revoked_and_all_of_it_written_down(database: Database, tenant: Tenant) -> None:
    end = utc_now() + timedelta(days=1)
    with database.transaction() as session:
        key, secret = Administration(session, ADMIN).create_key(
            tenant.id, name="ci", scopes=[Scope.JOBS_READ], environment="test", expires_at=end, models=["b", "a", "b"]
        )
    with database.transaction() as session:
        principal = authenticate(session, secret, environment="test")
    assert (principal.scopes, principal.models) == ({Scope.JOBS_READ}, {"a", "b"})
    assert (principal.may_use("a"), principal.may_use("c")) == (True, False)
    for _ in range(2):
        with database.transaction() as session:
            Administration(session, ADMIN).revoke_key(tenant.id, key.id)
    with database.transaction() as session, pytest.raises(Unauthenticated, match="revoked"):
        authenticate(session, secret, environment="test")

    made, revoked = record_of(database, tenant)
    assert made[:2] == (Action.KEY_CREATED, key.id)
    assert made[2]["scopes"] == ["jobs:read"]
    assert made[2]["models"] == ["a", "b"]
    assert revoked == (Action.KEY_REVOKED, key.id, {"name": "ci"})
    assert secret not in str(record_of(database, tenant))


@pytest.mark.parametrize(
    ("actor", "given", "field"),
    [
        (ADMIN, {"scopes": [Scope.OPERATOR]}, "scopes"),
        (Actor(ActorKind.USER, "usr", "ann", None, ()), {"scopes": [Scope.JOBS_READ]}, "scopes"),
        (Actor(ActorKind.API_KEY, "k", "k", None, (Scope.ADMIN,), ("a",)), {"models": None}, "models"),
        (Actor(ActorKind.API_KEY, "k", "k", None, (Scope.ADMIN,), ("a",)), {"models": ["a", "b"]}, "models"),
    ],
)
def test_nobody_gives_what_they_lack(
    database: Database, tenant: Tenant, actor: Actor, given: dict[str, Any], field: str
) -> None:
    wanted: dict[str, Any] = {"name": "x", "scopes": [Scope.JOBS_READ], "environment": "test"} | given
    with pytest.raises(Forbidden) as refusal, database.transaction() as session:
        Administration(session, actor).create_key(tenant.id, **wanted)

    assert refusal.value.field == field
    with database.transaction() as session:
        assert list_api_keys(session, tenant.id) == []
    assert record_of(database, tenant) == []


def test_a_key_cannot_have_ended_already(database: Database, tenant: Tenant) -> None:
    with pytest.raises(ValidationFailed, match="future"), database.transaction() as session:
        Administration(session, ADMIN).create_key(
            tenant.id, name="x", scopes=[Scope.ADMIN], environment="test", expires_at=utc_now() - timedelta(seconds=1)
        )


def test_an_operators_key_is_an_operators_to_revoke(database: Database, tenant: Tenant) -> None:
    with database.transaction() as session:
        key, secret = Administration(session, OPERATOR).create_key(
            tenant.id, name="x", scopes=[Scope.OPERATOR], environment="test"
        )
    with pytest.raises(Forbidden), database.transaction() as session:
        Administration(session, ADMIN).revoke_key(tenant.id, key.id)
    with database.transaction() as session:
        assert authenticate(session, secret, environment="test").may(Scope.OPERATOR)


def test_a_person_gets_a_password_of_their_own_or_one_that_is_made(database: Database, tenant: Tenant) -> None:
    make_user(database, tenant)
    with database.transaction() as session:
        user, made = Administration(session, ADMIN).create_user(tenant.id, email="Bob@Example.com", role=Role.ADMIN)

    assert made is not None
    assert signs_in(database, ANN, PASSWORD)
    assert signs_in(database, "bob@example.com", made)
    assert record_of(database, tenant)[1:] == [
        (Action.USER_CREATED, user.id, {"email": "bob@example.com", "role": "admin"})
    ]
    assert made not in str(record_of(database, tenant))


def test_an_address_belongs_to_one_person(database: Database, tenant: Tenant) -> None:
    make_user(database, tenant)
    with pytest.raises(AlreadyExists, match=r"ann@example\.com"), database.transaction() as session:
        Administration(session, ADMIN).create_user(tenant.id, email=" ANN@example.com", role=Role.MEMBER)

    assert len(record_of(database, tenant)) == 1


def test_changes_of_a_person_take_hold_and_are_written_down_as_differences(database: Database, tenant: Tenant) -> None:
    user_id = make_user(database, tenant)
    change(database, tenant, user_id, role=Role.ADMIN)
    make_user(database, tenant, "bob@example.com", Role.ADMIN)
    change(database, tenant, user_id, role=Role.MEMBER, password="another password")
    assert not signs_in(database, ANN, PASSWORD)
    assert signs_in(database, ANN, "another password")
    change(database, tenant, user_id, disabled=True)
    assert not signs_in(database, ANN, "another password")
    change(database, tenant, user_id, disabled=True)
    change(database, tenant, user_id, disabled=False)
    assert signs_in(database, ANN, "another password")

    changes = [details for action, target, details in record_of(database, tenant) if action == Action.USER_CHANGED]
    assert changes == [
        {"role": {"from": "member", "to": "admin"}},
        {"role": {"from": "admin", "to": "member"}, "password": "changed"},
        {"disabled": {"from": False, "to": True}},
        {"disabled": {"from": True, "to": False}},
    ]


@pytest.mark.parametrize("how", [{"role": Role.MEMBER}, {"disabled": True}, None])
@pytest.mark.parametrize("role", [Role.ADMIN, Role.OPERATOR])
def test_the_last_administrator_stays(
    database: Database, tenant: Tenant, how: dict[str, Any] | None, role: Role
) -> None:
    last = make_user(database, tenant, role=role)
    shut_out = make_user(database, tenant, "old@example.com", Role.ADMIN)
    change(database, tenant, shut_out, disabled=True)

    def end(administration: Administration) -> None:
        if how is None:
            administration.remove_user(tenant.id, last)
        else:
            administration.change_user(tenant.id, last, UserChange(**how))

    with pytest.raises(LastAdministrator), database.transaction() as session:
        end(Administration(session, OPERATOR))

    with database.transaction() as session:
        (user,) = [user for user in list_users(session, tenant.id) if user.id == last]
    assert (user.role, user.disabled_at) == (role, None)


def test_of_two_administrators_who_end_each_other_one_stays(database: Database, tenant: Tenant) -> None:
    ann, bob = [make_user(database, tenant, f"{name}@example.com", Role.ADMIN) for name in ("ann", "bob")]
    with ThreadPoolExecutor(1) as pool:
        with database.transaction() as session:
            Administration(session, ADMIN).change_user(tenant.id, ann, UserChange(role=Role.MEMBER))
            other = pool.submit(change, database, tenant, bob, role=Role.MEMBER)
            wait([other], timeout=0.5)  # it must not get through before this is committed
        with pytest.raises(LastAdministrator):
            other.result()


def test_operators_are_made_and_changed_by_operators(database: Database, tenant: Tenant) -> None:
    operator = make_user(database, tenant, role=Role.OPERATOR)
    member = make_user(database, tenant, "bob@example.com")
    for user_id, wanted in (
        (operator, {"disabled": True}),
        (operator, {"password": "x" * 12}),
        (member, {"role": Role.OPERATOR}),
    ):
        with pytest.raises(Forbidden):
            change(database, tenant, user_id, **wanted)
    with pytest.raises(Forbidden), database.transaction() as session:
        Administration(session, ADMIN).create_user(tenant.id, email="eve@example.com", role=Role.OPERATOR)
    with pytest.raises(Forbidden), database.transaction() as session:
        Administration(session, ADMIN).remove_user(tenant.id, operator)
    change(database, tenant, member, actor=OPERATOR, role=Role.OPERATOR)


def test_a_person_who_is_removed_is_gone_and_stays_in_the_record(database: Database, tenant: Tenant) -> None:
    user_id = make_user(database, tenant)
    with database.transaction() as session:
        Administration(session, ADMIN).remove_user(tenant.id, user_id)

    assert not signs_in(database, ANN, PASSWORD)
    assert record_of(database, tenant)[-1] == (
        Action.USER_REMOVED,
        user_id,
        {"email": "ann@example.com", "role": "member"},
    )


def test_other_tenants_people_and_keys_are_not_there(database: Database, tenant: Tenant) -> None:
    user_id = make_user(database, tenant)
    with database.transaction() as session:
        other = create_tenant(session, "other")
        key, _ = Administration(session, OPERATOR).create_key(
            tenant.id, name="x", scopes=[Scope.JOBS_READ], environment="test"
        )
    for attempt in (
        lambda administration: administration.revoke_key(other.id, key.id),
        lambda administration: administration.change_user(other.id, user_id, UserChange(disabled=True)),
        lambda administration: administration.remove_user(other.id, user_id),
    ):
        with pytest.raises(NotFound), database.transaction() as session:
            attempt(Administration(session, OPERATOR))
    assert signs_in(database, ANN, PASSWORD)
    assert record_of(database, other) == []


def test_tenants_are_made_and_changed_by_operators_alone(database: Database, tenant: Tenant) -> None:
    with database.transaction() as session:
        made = Administration(session, OPERATOR).create_tenant("new", max_queued_jobs=5)
        changed = Administration(session, OPERATOR).change_tenant(made.id, max_queued_jobs=None, weight=2.0)
    assert (changed.max_queued_jobs, changed.weight) == (None, 2.0)
    assert {action: details for action, _, details in record_of(database, made)} == {
        Action.TENANT_CREATED: {"name": "new", "max_queued_jobs": 5},
        Action.TENANT_CHANGED: {"max_queued_jobs": {"from": 5, "to": None}, "weight": {"from": 1.0, "to": 2.0}},
    }
    for name in ("acme", "new"):
        with pytest.raises(AlreadyExists, match=name), database.transaction() as session:
            Administration(session, OPERATOR).create_tenant(name)
    with pytest.raises(AlreadyExists, match="acme"), database.transaction() as session:
        Administration(session, OPERATOR).change_tenant(made.id, name="acme")
    with pytest.raises(Forbidden), database.transaction() as session:
        Administration(session, ADMIN).create_tenant("third")
    with pytest.raises(Forbidden), database.transaction() as session:
        Administration(session, ADMIN).change_tenant(tenant.id, weight=9.0)
    with pytest.raises(NotFound), database.transaction() as session:
        Administration(session, OPERATOR).change_tenant("ten_absent", weight=9.0)


def test_who_and_where_from_are_written_down_and_nobody_alters_it(database: Database, tenant: Tenant) -> None:
    with database.transaction() as session:
        Administration(session, ADMIN).create_user(tenant.id, email="ann@example.com", role=Role.MEMBER)
    with database.transaction() as session:
        ((entry,), _) = list_entries(session, AuditFilter(tenant.id), limit=1)
    assert (entry.actor_kind, entry.actor_id, entry.actor_name, entry.address) == ("api_key", "key_1", "ci", "10.0.0.1")
    with pytest.raises(DBAPIError, match="stays as it was written"), database.transaction() as session:
        session.execute(update(AuditEntry).values(actor_name="somebody else"))


def test_the_record_is_filtered_and_paged(database: Database, tenant: Tenant) -> None:
    first = make_user(database, tenant)
    second = make_user(database, tenant, "bob@example.com")
    change(database, tenant, second, role=Role.ADMIN)
    with database.transaction() as session:
        page, after = list_entries(session, AuditFilter(tenant.id), limit=2)
        rest, end = list_entries(session, AuditFilter(tenant.id), limit=2, before=after)
        assert [entry.target for entry in (*page, *rest)] == [second, second, first]
        assert end is None
        by_actor, _ = list_entries(session, AuditFilter(actor="key_1"), limit=9)
        by_target, _ = list_entries(session, AuditFilter(target=first), limit=9)
        by_action, _ = list_entries(session, AuditFilter(action=Action.USER_CREATED), limit=9)
    assert [entry.action for entry in by_actor] == ["user.changed"]
    assert [entry.target for entry in by_target] == [first]
    assert [entry.target for entry in by_action] == [second, first]
