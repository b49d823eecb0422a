"""The portal on real services, and people who are signed in to it."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
from argon2 import PasswordHasher
from flask import Flask
from flask.testing import FlaskClient
from penstock.auth.models import Tenant, User
from penstock.db import Database
from penstock.ids import new_id
from penstock.jobs.models import Job
from penstock.portal.sessions import session_of
from penstock.registry.models import Deployment
from penstock.settings import Settings
from redis import Redis
from werkzeug.test import TestResponse

from tests.factories import make_deployment, make_tenant, submit_job
from tests.serving import renewed

PASSWORD = "correct horse battery"


@cache
def password_hash() -> str:
    """The password's hash, made once: it is slow on purpose."""
    return PasswordHasher().hash(PASSWORD)


@pytest.fixture
def app(routed: Flask, settings: Settings, database: Database, redis: Redis) -> Iterator[Flask]:
    with renewed(routed, settings, database, redis) as app:
        yield app


@pytest.fixture
def deployment(database: Database) -> Deployment:
    """The champion of the model `tiny`, with a context of 256 tokens."""
    with database.transaction() as session:
        return make_deployment(session)


@dataclass(frozen=True)
class Person:
    """Somebody with an account, and their browser."""

    client: FlaskClient
    database: Database
    tenant_id: str
    email: str

    def token(self) -> str:
        """The form token of their session, as every page carries it."""
        page = self.client.get("/sign-in", follow_redirects=True).text
        match = re.search(r'name="csrf_token" value="([^"]+)"', page)
        assert match is not None
        return match[1]

    def sign_in(self, password: str = PASSWORD, *, to: str = "/sign-in", email: str | None = None) -> TestResponse:
        form = {"csrf_token": self.token(), "email": email or self.email, "password": password}
        return self.client.post(to, data=form)

    def get(self, path: str, **headers: str) -> TestResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.get(path, headers={"Accept": "text/html"} | named)

    def post(self, path: str, form: Mapping[str, Any] | None = None) -> TestResponse:
        return self.client.post(
            path, data={"csrf_token": self.token(), **(form or {})}, headers={"Accept": "text/html"}
        )

    def submit(self, **body: Any) -> Job:
        with self.database.transaction() as session:
            return submit_job(session, session.get_one(Tenant, self.tenant_id), **body)

    def job(self, job_id: str) -> Job:
        with self.database.transaction() as session:
            return session.get_one(Job, job_id)


@pytest.fixture
def make_person(app: Flask, database: Database) -> Callable[..., Person]:
    """Makes a person of a new tenant; signed in unless told otherwise."""

    def make(email: str = "ada@example.com", *, signed_in: bool = True) -> Person:
        with database.transaction() as session:
            tenant = make_tenant(session)
            user = User(
                id=new_id("usr"), tenant_id=tenant.id, email=email, password_hash=password_hash(), role="member"
            )
            session.add(user)
        client = app.test_client()
        if signed_in:
            with client.session_transaction() as cookie:
                cookie.update(session_of(user))
        return Person(client, database, tenant.id, email)

    return make


@pytest.fixture
def person(make_person: Callable[..., Person]) -> Person:
    return make_person()
