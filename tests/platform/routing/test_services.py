"""A job's `model` becomes a deployment, or an error that says what there is."""

import pytest
from penstock.clock import utc_now
from penstock.db import Database
from penstock.errors import ModelNotFound
from penstock.registry.models import Deployment, RoutingPolicy
from penstock.routing.services import available_models, choose

from tests.factories import make_deployment


def test_a_name_means_its_champion(database: Database) -> None:
    with database.transaction() as session:
        champion = make_deployment(session)
        for model in ("tiny", "tiny@champion"):
            decision = choose(session, model)
            assert decision.deployment.id == champion.id
            assert decision.reason | {"since": None} == {
                "rule": "alias",
                "alias": "champion",
                "version": "1",
                "since": None,
            }


def test_the_challenger_is_asked_for_by_its_alias(database: Database) -> None:
    with database.transaction() as session:
        make_deployment(session)
        rival = make_deployment(session, version="2", champion=False)
        with pytest.raises(ModelNotFound, match="no model 'tiny' with the alias 'challenger'"):
            choose(session, "tiny@challenger")
        session.get_one(RoutingPolicy, "tiny").challenger_id = rival.id
        decision = choose(session, "tiny@challenger")
        assert decision.deployment.id == rival.id
        assert decision.reason == {"rule": "alias", "alias": "challenger", "version": "2"}


def test_a_version_may_be_asked_for_once_a_worker_had_it_ready(database: Database) -> None:
    with database.transaction() as session:
        make_deployment(session)
        other = make_deployment(session, version="2", champion=False)
        assert choose(session, "tiny:1").reason == {"rule": "version", "version": "1"}
        with pytest.raises(ModelNotFound, match="no version '2' of 'tiny' takes jobs; models that take jobs: tiny"):
            choose(session, "tiny:2")
        other.first_ready_at = utc_now()
        session.flush()
        assert choose(session, "tiny:2").deployment.id == other.id


@pytest.mark.parametrize("state", ["draining", "retired"])
def test_a_version_that_goes_takes_no_jobs(database: Database, state: str) -> None:
    with database.transaction() as session:
        make_deployment(session).state = state
        session.flush()
        with pytest.raises(ModelNotFound):
            choose(session, "tiny:1")


def test_of_two_with_one_number_the_newer_is_meant(database: Database) -> None:
    with database.transaction() as session:
        make_deployment(session)
    with database.transaction() as session:
        again = Deployment(
            id="dep_again",
            model_name="tiny",
            model_version="1",
            source="/nowhere",
            manifest={},
            recipe={},
            context_length=8,
            digest="other files",
            first_ready_at=utc_now(),
        )
        session.add(again)
        session.flush()
        assert choose(session, "tiny:1").deployment.id == "dep_again"


@pytest.mark.parametrize("model", ["other", "other@champion", "other:1", "tiny@nothing", "tiny:9", "@", ":", ""])
def test_what_is_not_there_is_refused_with_what_is(database: Database, model: str) -> None:
    with database.transaction() as session:
        make_deployment(session)
        with pytest.raises(ModelNotFound, match="models that take jobs: tiny") as caught:
            choose(session, model)
        assert caught.value.field == "model"
        assert caught.value.extra["available"] == ["tiny"]


def test_a_model_without_champion_says_why(database: Database) -> None:
    with database.transaction() as session:
        session.add(RoutingPolicy(model_name="tiny", reason="the model is gone from MLflow"))
        session.flush()
        assert available_models(session) == []
        with pytest.raises(ModelNotFound, match="'tiny' takes no jobs: the model is gone from MLflow; no model takes"):
            choose(session, "tiny")
