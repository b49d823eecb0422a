"""What a list asks of the database does not grow with what is in it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from flask import Flask
from penstock.auth.models import User
from penstock.auth.services import Role
from penstock.db import Database
from sqlalchemy import event, update

from tests.factories import make_deployment, make_rollout
from tests.platform.portal.conftest import Person
from tests.platform.portal.crowd import add_one_of_each

NAMING = (
    "/jobs", "/batches", "/files", "/keys", "/webhooks", "/usage", "/jobs/bulk", "/admin/workers", "/admin/models",
    "/admin/models/common", "/admin/rollouts", "/admin/dead-letters", "/admin/tenants", "/admin/audit", "/admin/health",
)  # fmt: skip
"""Lists that show each of the many by its name."""
BY_HAND = ("/admin/models/common", "/batches/batch_one-1", "/jobs/job_one-1")
"""Pages of one thing, with lists on them."""


@contextmanager
def counted(database: Database) -> Iterator[list[str]]:
    asked: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        asked.append(statement)

    event.listen(database.engine, "before_cursor_execute", note)
    try:
        yield asked
    finally:
        event.remove(database.engine, "before_cursor_execute", note)


def statements(person: Person, paths: list[str]) -> tuple[dict[str, int], dict[str, str]]:
    """How many statements each page takes, and what it shows. Each is read once before, for what is kept in memory.

    What answers otherwise than with a page, as forms do that want arguments, is left out.
    """
    counts, texts = {}, {}
    for path in paths:
        person.get(path)
        with counted(person.database) as asked:
            answer = person.get(path)
        if answer.status_code == 200:
            counts[path], texts[path] = len(asked), answer.text
    return counts, texts


def test_a_page_takes_as_many_statements_for_eight_as_for_one(app: Flask, make_person: Callable[..., Person]) -> None:
    person = make_person()
    with person.database.transaction() as session:
        session.execute(update(User).values(role=Role.OPERATOR))
        champion = make_deployment(session, "common", "1")
        candidate = make_deployment(session, "common", "2", champion=False)
        rollout_id = make_rollout(session, champion, candidate).id
    paths = [*BY_HAND, *(rule.rule for rule in app.url_map.iter_rules() if is_page(rule.endpoint, rule))]
    names = [add_one_of_each(person.database, 1, person.tenant_id, rollout_id)]
    of_one, _ = statements(person, paths)
    assert {*NAMING, *BY_HAND} <= set(of_one)
    names += [add_one_of_each(person.database, number, person.tenant_id, rollout_id) for number in range(2, 9)]
    of_eight, texts = statements(person, paths)
    unseen = {path for path in NAMING for name in names if name not in texts[path]}
    assert unseen == set()
    grown = {path: (of_one[path], of_eight[path]) for path in of_one if of_one[path] != of_eight[path]}
    assert grown == {}
    assert of_eight["/admin/workers"] < 15


def is_page(endpoint: str, rule: Any) -> bool:
    return endpoint.startswith("portal_") and "GET" in rule.methods and not rule.arguments
