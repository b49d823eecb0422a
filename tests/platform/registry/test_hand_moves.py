"""Aliases that a promotion moves, and that somebody moves by hand, in a real MLflow."""

from collections.abc import Iterator
from contextlib import closing

import pytest
from penstock.auth.audit import Actor, ActorKind
from penstock.auth.services import Scope, create_api_key
from penstock.client import Decision as ToldDecision
from penstock.db import Database
from penstock.errors import ModelNotFound, ServiceUnavailable
from penstock.events.models import FeedEvent
from penstock.ids import new_id
from penstock.registry import hosting_services as hosting
from penstock.registry.hosting_services import HostingReport, HostingState, WorkerCard
from penstock.registry.mlflow_api import MlflowApi
from penstock.registry.mlflow_sync import Synchroniser
from penstock.registry.models import Deployment, RoutingPolicy
from penstock.registry.telling import DECISION_TAG, ROLLOUT_TAG
from penstock.rollouts import services
from penstock.rollouts.evidence import Evidence
from penstock.rollouts.lead import take
from penstock.rollouts.ledger import ledger
from penstock.rollouts.models import Decision, Rollout
from penstock.rollouts.policy import Canary, Policy, Step
from penstock.rollouts.statistics import Sample, Tally
from penstock.settings import Settings
from penstock.webhooks.models import WebhookDelivery, WebhookEndpoint
from sqlalchemy import select, update

from tests.factories import make_tenant
from tests.platform.registry.conftest import Registrar
from tests.platform.registry.outage import way_to

ANN = Actor(ActorKind.USER, "usr_1", "Ann", "127.0.0.1", ())
STEP = Step(share=0.5, error_margin=0.4, slow_margin=0.4, minimum_jobs=1)
POLICY = Policy(offline=None, shadow=None, latency=None, canary=Canary(steps=(STEP,)))
PROOF = Evidence(step_units=100, units=Tally().plus(0.5, 100, 200), pairs={"errors": Sample(((0, 200),))})


class Registry:
    """A champion 1 and a challenger 2 in MLflow, both ready on a worker, and how the platform sees them."""

    def __init__(self, database: Database, synchroniser: Synchroniser, mlflow: MlflowApi) -> None:
        self.database, self.synchroniser, self.mlflow = database, synchroniser, mlflow
        with database.transaction() as session:
            hosting.register_worker(session, WorkerCard("wrk_1", "test", 1, "cpu", 4))
            self.operator = make_tenant(session).id
            create_api_key(session, tenant_id=self.operator, name="o", scopes=[Scope.OPERATOR], environment="test")
            session.add(
                WebhookEndpoint(
                    id=new_id("whe"), tenant_id=self.operator, url="http://127.0.0.1:9/", secret="whsec_dGVzdA==",
                    events=["model.champion_set_back", "model.champion_removed"],
                )
            )  # fmt: skip

    def follow(self) -> None:
        assert self.synchroniser.tick()

    def make_ready(self) -> None:
        """Everything that is known is loaded."""
        self.follow()
        with self.database.transaction() as session:
            for deployment in hosting.wanted_deployments(session):
                hosting.report(session, "wrk_1", HostingReport(deployment.id, HostingState.READY))
        self.follow()

    def begin(self) -> str:
        with self.database.transaction() as session:
            return services.start(session, "tiny", "2", POLICY, ANN).id

    def promote(self, rollout_id: str) -> None:
        """By proof, as the controller does."""
        with self.database.transaction() as session:
            lead = take(session, "rollouts", "test", 600)
            assert lead
            services.conclude(session, lead, rollout_id, session.get_one(Rollout, rollout_id).fence, PROOF)

    def state(self, rollout_id: str) -> str:
        with self.database.transaction() as session:
            return session.get_one(Rollout, rollout_id).state

    def route(self) -> RoutingPolicy:
        with self.database.transaction() as session:
            return session.get_one(RoutingPolicy, "tiny")

    def serving(self) -> str | None:
        champion = self.route().champion_id
        with self.database.transaction() as session:
            return session.get_one(Deployment, champion).model_version if champion else None

    def alias(self, name: str = "champion") -> str | None:
        return self.mlflow.model("tiny").aliases.get(name)

    def by_hand(self) -> list[tuple[int, str, str | None, str | None]]:
        """What the ledger says of moves that no rollout made."""
        query = select(Decision).where(Decision.rollout_id.is_(None)).order_by(Decision.number)
        with self.database.transaction() as session:
            return [(row.number, row.move, row.from_version, row.to_version) for row in session.scalars(query)]

    def told(self) -> list[FeedEvent]:
        """What operators' feeds say of moves that no rollout made."""
        query = select(FeedEvent).where(FeedEvent.type.startswith("model.")).order_by(FeedEvent.id)
        with self.database.transaction() as session:
            return list(session.scalars(query))

    def delivered(self) -> list[str]:
        """What is owed to the operators' webhook endpoint."""
        with self.database.transaction() as session:
            return [each.payload["type"] for each in session.scalars(select(WebhookDelivery))]


@pytest.fixture
def registry(database: Database, synchroniser: Synchroniser, registrar: Registrar, mlflow: MlflowApi) -> Registry:
    registrar(alias="champion")
    registrar(alias="challenger")
    registry = Registry(database, synchroniser, mlflow)
    registry.make_ready()
    return registry


@pytest.fixture
def strict(registry: Registry, registry_settings: Settings) -> Iterator[Registry]:
    """The same where aliases that are moved by hand are set back."""
    settings = registry_settings.model_copy(update={"registry_hand_moves": "revert"})
    with closing(Synchroniser(registry.database, settings)) as reverting:
        registry.synchroniser = reverting
        yield registry


def test_a_promotion_moves_jobs_first_and_then_the_alias(registry: Registry, registry_settings: Settings) -> None:
    rollout_id = registry.begin()
    registry.promote(rollout_id)
    assert (registry.serving(), registry.alias()) == ("2", "1")
    assert registry_settings.mlflow_tracking_uri is not None
    with way_to(registry_settings.mlflow_tracking_uri) as way:
        settings = registry_settings.model_copy(update={"mlflow_tracking_uri": way.url})
        with closing(Synchroniser(registry.database, settings)) as cut_off:
            way.cut()
            with pytest.raises(ServiceUnavailable):
                cut_off.tick()
            assert (registry.serving(), registry.route().alias_to) == ("2", "2")
            way.open = True
            assert cut_off.tick()
    assert (registry.serving(), registry.alias(), registry.route().alias_to) == ("2", "2", None)
    registry.follow()
    assert registry.by_hand() == [(1, "alias_moved", None, "1")], "what we moved ourselves is nobody's hand"
    with registry.database.transaction() as session:
        wanted = {each.model_version for each in hosting.wanted_deployments(session)}
        assert wanted == {"1", "2"}, "the old version stays warm"
        session.execute(update(Deployment).values(keep_warm_until=None))
    for _ in range(2):
        registry.follow()
    with registry.database.transaction() as session:
        assert {each.model_version for each in hosting.wanted_deployments(session)} == {"2"}


def test_and_a_promotion_that_is_taken_back_moves_it_back(registry: Registry) -> None:
    rollout_id = registry.begin()
    registry.promote(rollout_id)
    registry.follow()
    with registry.database.transaction() as session:
        services.roll_back(session, rollout_id, ANN, "it sings")
    assert (registry.serving(), registry.alias()) == ("1", "2")
    registry.follow()
    assert (registry.serving(), registry.alias()) == ("1", "1")


def test_a_promotion_that_commits_while_mlflow_is_read_is_not_undone(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollout_id = registry.begin()
    read = registry.synchroniser._mlflow.models  # type: ignore[union-attr]  # it has an address

    def promoted_meanwhile(**given: object) -> object:
        found = read(**given)  # type: ignore[arg-type]  # passed on
        registry.promote(rollout_id)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(registry.synchroniser._mlflow, "models", promoted_meanwhile)
        registry.follow()
    assert (registry.serving(), registry.route().alias_to) == ("2", "2")
    registry.follow()
    assert (registry.serving(), registry.alias()) == ("2", "2")


def test_a_hand_that_moves_the_alias_elsewhere_ends_the_rollout(registry: Registry, registrar: Registrar) -> None:
    rollout_id = registry.begin()
    registrar(alias="champion")
    registry.make_ready()
    assert (registry.state(rollout_id), registry.serving()) == ("aborted", "3")
    assert registry.by_hand() == [(1, "alias_moved", None, "1"), (2, "alias_moved", "1", "3")]
    first, second = registry.told()
    assert (first.type, second.type, second.tenant_id) == ("model.champion_moved", first.type, registry.operator)
    decision = second.data
    assert (decision["object"], decision["rollout_id"], decision["actor"]["id"]) == ("decision", None, "mlflow")
    assert (decision["from_version"], decision["to_version"]) == ("1", "3")
    assert {name: each["version"] for name, each in decision["artifacts"].items()} == {"from": "1", "to": "3"}
    assert decision["artifacts"]["from"]["digest"] != decision["artifacts"]["to"]["digest"]
    assert ToldDecision.model_validate(decision).reason == "the alias champion was moved to version 3 in MLflow"
    with registry.database.transaction() as session:
        last = ledger(session, rollout_id)[-1]
        assert (last.move, last.actor_name) == ("abort", "somebody in MLflow")
        assert last.reason == "the alias champion was moved to version 3 in MLflow"


def test_a_hand_that_moves_it_to_the_candidate_promotes_it(registry: Registry) -> None:
    rollout_id = registry.begin()
    registry.mlflow.set_alias("tiny", "champion", "2")
    registry.follow()
    assert (registry.state(rollout_id), registry.serving(), registry.alias()) == ("promoted", "2", "2")
    with registry.database.transaction() as session:
        assert [each.move for each in ledger(session, rollout_id)] == ["start", "adopt"]


def test_an_alias_that_is_removed_and_a_model_that_is_deleted_end_it_too(
    registry: Registry, registrar: Registrar
) -> None:
    first = registry.begin()
    registrar.ask("DELETE", "registered-models/alias", name="tiny", alias="champion").raise_for_status()
    registry.follow()
    assert (registry.state(first), registry.serving()) == ("aborted", None)
    registry.mlflow.set_alias("tiny", "champion", "1")
    registry.follow()
    second = registry.begin()
    registrar.ask("DELETE", "registered-models/delete", name="tiny").raise_for_status()
    registry.follow()
    assert (registry.state(second), registry.serving()) == ("aborted", None)
    moves = [move for _, move, _, _ in registry.by_hand()]
    assert moves == ["alias_moved", "alias_removed", "alias_moved", "alias_removed"]
    names = ["model.champion_moved", "model.champion_removed"] * 2
    assert ([each.type for each in registry.told()], registry.delivered()) == (names, ["model.champion_removed"] * 2)


def test_where_hands_are_not_honoured_the_alias_is_set_back(strict: Registry, registrar: Registrar) -> None:
    rollout_id = strict.begin()
    registrar(alias="champion")
    strict.follow()
    assert (strict.serving(), strict.route().alias_to) == ("1", "1")
    strict.follow()
    assert (strict.serving(), strict.alias(), strict.state(rollout_id)) == ("1", "1", "canary")
    registrar.ask("DELETE", "registered-models/alias", name="tiny", alias="champion").raise_for_status()
    for _ in range(3):
        strict.follow()
    assert (strict.serving(), strict.alias()) == ("1", "1")
    assert strict.by_hand()[1:] == [(2, "alias_set_back", "3", "1"), (3, "alias_set_back", None, "1")]
    assert strict.delivered() == ["model.champion_set_back"] * 2


def test_an_alias_that_mlflow_refuses_stops_nothing_else(strict: Registry, registrar: Registrar) -> None:
    with strict.database.transaction() as session:
        session.get_one(RoutingPolicy, "tiny").alias_to = "99"
    registrar("other", alias="champion")
    strict.follow()
    with strict.database.transaction() as session:
        assert session.get(RoutingPolicy, "other") is not None
    assert (strict.serving(), strict.route().alias_to) == ("1", "99")


def test_a_rollout_keeps_both_versions_hosted(registry: Registry, registrar: Registrar) -> None:
    registry.begin()
    registrar.ask("DELETE", "registered-models/alias", name="tiny", alias="challenger").raise_for_status()
    for _ in range(2):
        registry.follow()
    with registry.database.transaction() as session:
        assert {each.model_version for each in hosting.wanted_deployments(session)} == {"1", "2"}


def test_mlflow_is_told_of_each_decision_once(registry: Registry) -> None:
    rollout_id = registry.begin()
    registry.promote(rollout_id)
    registry.follow()
    with registry.database.transaction() as session:
        decision = ledger(session, rollout_id)[-1]
        assert session.get_one(Rollout, rollout_id).told == 2
        session.get_one(Rollout, rollout_id).told = 0  # a process that died before it had written that down
    registry.follow()
    tags = registry.mlflow.version("tiny", "2").tags
    assert (tags[ROLLOUT_TAG], tags[DECISION_TAG]) == (rollout_id, f"{decision.id} promote: promoted")
    found = registry.mlflow.ask("GET", "experiments/get-by-name", params={"experiment_name": "penstock"})
    mine = {
        "experiment_ids": [found["experiment"]["experiment_id"]],
        "filter": f"tags.`{ROLLOUT_TAG}` = '{rollout_id}'",
    }
    (run,) = registry.mlflow.ask("POST", "runs/search", json=mine)["runs"]
    assert run["info"]["status"] == "FINISHED"
    metrics = {each["key"]: each["value"] for each in run["data"]["metrics"]}
    parameters = {each["key"]: each["value"] for each in run["data"]["params"]}
    assert metrics["errors.margin"] == 0.4
    assert (parameters["version"], parameters["champion"], parameters["verdict"]) == ("2", "1", "promote")


def test_a_version_that_is_gone_there_is_no_reason_to_stop_telling(registry: Registry, registrar: Registrar) -> None:
    rollout_id = registry.begin()
    registrar.ask("DELETE", "model-versions/delete", name="tiny", version="2").raise_for_status()
    registry.follow()
    with registry.database.transaction() as session:
        assert session.get_one(Rollout, rollout_id).told == 1
    with pytest.raises(ModelNotFound):
        registry.mlflow.version("tiny", "2")
