"""What serves, how it stands, and why: one account for the command line and for the API."""

import pytest
from penstock.db import Database
from penstock.registry.catalogue import list_models
from penstock.registry.models import Hosting, RoutingPolicy
from penstock.routing import catalogue as documents
from sqlalchemy import update

from tests.factories import make_deployment, make_worker


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("ready", "ready"),
        ("loading", "loading (25%)"),
        ("failed", "could not be loaded: config.json is missing"),
        ("unloading", "no worker hosts it"),
        ("cold", "cold: loaded when a job waits for it"),
    ],
)
def test_a_version_stands_as_its_worker_says(database: Database, state: str, words: str) -> None:
    with database.transaction() as session:
        make_worker(session, make_deployment(session), state=state)
        session.execute(update(Hosting).values(progress=0.25, error="config.json is missing"))
        (model,) = list_models(session)
        assert model.champion is not None
        assert (model.champion.state, model.champion.ready) == (words, state == "ready")


def test_the_best_of_several_workers_counts(database: Database) -> None:
    with database.transaction() as session:
        deployment = make_deployment(session)
        for state in ("failed", "loading", "ready"):
            make_worker(session, deployment, state=state)
        (model,) = list_models(session)
        assert model.champion is not None
        assert model.champion.state == "ready"


def test_an_incoming_version_shows_with_its_fault(database: Database) -> None:
    with database.transaction() as session:
        make_worker(session, make_deployment(session))
        incoming = make_deployment(session, version="2", champion=False)
        make_worker(session, incoming, state="failed")
        session.execute(update(Hosting).where(Hosting.state == "failed").values(error="no memory"))
        session.get_one(RoutingPolicy, "tiny").incoming_id = incoming.id
        session.flush()
        (document,) = documents.list_models(session)
    assert (document["version"], document["state"]) == ("1", "ready")
    assert document["incoming"] == {"version": "2", "state": "could not be loaded: no memory"}
    assert document["reason"] == "made by a test"


def test_a_model_that_takes_no_jobs_is_in_the_list_but_not_in_the_api(database: Database) -> None:
    with database.transaction() as session:
        session.add(RoutingPolicy(model_name="gone", reason="the model is gone from MLflow"))
        session.flush()
        (model,) = list_models(session)
        assert (model.name, model.champion, model.reason) == ("gone", None, "the model is gone from MLflow")
        assert documents.list_models(session) == []
