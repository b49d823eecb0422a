"""Aliases that move in a real MLflow move new jobs, without a gap and without a version that cannot be loaded."""

import pytest
from penstock.auth.models import Tenant
from penstock.db import Database
from penstock.errors import ModelNotFound
from penstock.jobs import lease
from penstock.jobs.models import Job
from penstock.jobs.states import JobState
from penstock.registry import hosting_services as hosting
from penstock.registry.hosting_services import HostingReport, HostingState, WorkerCard
from penstock.registry.mlflow_api import MlflowApi
from penstock.registry.mlflow_sync import Synchroniser
from penstock.registry.models import Deployment, RoutingPolicy
from penstock.registry.version_tags import from_tags
from penstock.routing.services import choose
from penstock.settings import Settings
from sqlalchemy import select, update

from tests.factories import make_tenant, submit_job
from tests.platform.registry.conftest import Registrar


class Platform:
    """The database as the control process, one worker and a client use it."""

    def __init__(self, database: Database, synchroniser: Synchroniser) -> None:
        self.database, self.synchroniser = database, synchroniser
        with database.transaction() as session:
            hosting.register_worker(session, WorkerCard("wrk_1", "test", 1, "cpu", 4))
            self.tenant: Tenant = make_tenant(session)

    def follow(self) -> None:
        assert self.synchroniser.tick()

    def says(self, version: str, state: HostingState, error: str | None = None) -> None:
        """The worker reports on a version."""
        with self.database.transaction() as session:
            deployment = self._deployment(version)
            hosting.report(session, "wrk_1", HostingReport(deployment.id, state, error=error))

    def serving(self) -> str | None:
        """The version that a new job of `tiny` gets, or None when it is refused."""
        with self.database.transaction() as session:
            try:
                return choose(session, "tiny").deployment.model_version
            except ModelNotFound:
                return None

    def state(self, version: str) -> str:
        return self._deployment(version).state

    def context_length(self, version: str) -> int:
        return self._deployment(version).context_length

    def policy(self) -> RoutingPolicy:
        with self.database.transaction() as session:
            return session.get_one(RoutingPolicy, "tiny")

    def submit(self) -> Job:
        with self.database.transaction() as session:
            return submit_job(session, self.tenant)

    def job(self, identity: str) -> Job:
        with self.database.transaction() as session:
            return session.get_one(Job, identity)

    def finish_one_of(self, version: str) -> None:
        """The worker serves the next waiting job of the version."""
        with self.database.transaction() as session:
            claim = lease.claim(
                session, worker_id="wrk_1", deployment_id=self._deployment(version).id, lease_seconds=30
            )
            assert claim is not None
            held = lease.Held(claim.job.id, claim.fence)
            lease.finish(session, held, lease.Finish(JobState.SUCCEEDED, [], prompt_tokens=1))

    def _deployment(self, version: str) -> Deployment:
        with self.database.transaction() as session:
            newest = select(Deployment).where(Deployment.model_version == version).order_by(Deployment.id.desc())
            return session.scalars(newest.limit(1)).one()


@pytest.fixture
def platform(database: Database, synchroniser: Synchroniser) -> Platform:
    return Platform(database, synchroniser)


def make_ready(platform: Platform, version: str) -> None:
    platform.follow()
    platform.says(version, HostingState.READY)
    platform.follow()


def test_a_registered_champion_becomes_a_deployment(
    platform: Platform, registrar: Registrar, mlflow: MlflowApi
) -> None:
    registrar(alias="champion")
    platform.follow()
    facts = from_tags(mlflow.version("tiny", "1").tags)
    with platform.database.transaction() as session:
        (deployment,) = hosting.wanted_deployments(session)
        assert (deployment.model_name, deployment.model_version) == ("tiny", "1")
        assert (deployment.source, deployment.manifest) == (str(facts.source), facts.manifest)
        assert (deployment.recipe, deployment.context_length) == (facts.recipe, facts.context_length)
        assert deployment.digest == facts.digest
    assert platform.serving() == "1"


def test_a_context_is_no_longer_than_workers_serve(
    platform: Platform, registrar: Registrar, registry_settings: Settings
) -> None:
    registrar(alias="champion")
    platform.follow()
    own = platform.context_length("1")
    for longest, served in ((own - 1, own - 1), (own + 1, own), (None, own)):
        follower = Synchroniser(
            platform.database, registry_settings.model_copy(update={"engine_max_model_len": longest})
        )
        assert follower.tick()
        follower.close()
        assert platform.context_length("1") == served


def test_a_model_without_followed_alias_is_left_alone(platform: Platform, registrar: Registrar) -> None:
    registrar()
    registrar(alias="best")
    platform.follow()
    with platform.database.transaction() as session:
        assert session.scalars(select(Deployment)).all() == []
        assert session.scalars(select(RoutingPolicy)).all() == []


def test_nothing_changes_while_nothing_moves(platform: Platform, registrar: Registrar) -> None:
    registrar(alias="champion")
    make_ready(platform, "1")
    before = platform.policy()
    platform.follow()
    after = platform.policy()
    assert (after.champion_id, after.champion_since) == (before.champion_id, before.champion_since)
    with platform.database.transaction() as session:
        assert len(session.scalars(select(Deployment)).all()) == 1


def test_moving_the_alias_moves_new_jobs_without_a_gap(
    platform: Platform, registrar: Registrar, mlflow: MlflowApi
) -> None:
    registrar(alias="champion")
    make_ready(platform, "1")
    registrar(alias="champion")
    platform.follow()
    assert platform.serving() == "1"
    assert (platform.state("1"), platform.state("2")) == ("active", "active")
    platform.says("2", HostingState.LOADING)
    platform.follow()
    assert platform.serving() == "1"
    assert "version 2 takes over once a worker has loaded it" in platform.policy().reason
    platform.says("2", HostingState.READY)
    platform.follow()
    assert platform.serving() == "2"
    assert platform.policy().incoming_id is None
    mlflow.set_alias("tiny", "champion", "1")
    platform.says("1", HostingState.READY)
    platform.follow()
    assert platform.serving() == "1"


def test_waiting_jobs_are_served_by_the_version_that_they_were_given(platform: Platform, registrar: Registrar) -> None:
    registrar(alias="champion")
    make_ready(platform, "1")
    old = platform.submit()
    registrar(alias="champion")
    make_ready(platform, "2")
    new = platform.submit()
    assert (old.model_version, new.model_version) == ("1", "2")
    for _ in range(2):
        platform.follow()
        assert platform.state("1") == "draining"
    platform.finish_one_of("1")
    assert platform.job(old.id).state == JobState.SUCCEEDED
    platform.follow()
    assert platform.state("1") == "retired"
    assert platform.state("2") == "active"


def test_a_running_job_keeps_its_version_loaded(platform: Platform, registrar: Registrar) -> None:
    registrar(alias="champion")
    make_ready(platform, "1")
    job = platform.submit()
    with platform.database.transaction() as session:
        lease.claim(session, worker_id="wrk_1", deployment_id=job.deployment_id, lease_seconds=30)
    registrar(alias="champion")
    make_ready(platform, "2")
    platform.follow()
    assert platform.state("1") == "draining"


def test_a_job_that_commits_late_brings_its_version_back(platform: Platform, registrar: Registrar) -> None:
    registrar(alias="champion")
    make_ready(platform, "1")
    with platform.database.transaction() as session:
        late = submit_job(session, platform.tenant)
        registrar(alias="champion")
        make_ready(platform, "2")
        platform.follow()
        assert platform.state("1") == "retired"
    platform.follow()
    assert platform.state("1") == "draining"
    platform.finish_one_of("1")
    assert platform.job(late.id).state == JobState.SUCCEEDED


def test_a_version_that_cannot_be_loaded_never_takes_traffic(platform: Platform, registrar: Registrar) -> None:
    registrar(alias="champion")
    make_ready(platform, "1")
    registrar(alias="champion")
    platform.follow()
    platform.says("2", HostingState.FAILED, "model.safetensors was altered")
    platform.follow()
    assert platform.serving() == "1"
    assert "version 2 cannot be loaded (model.safetensors was altered)" in platform.policy().reason
    with platform.database.transaction() as session, pytest.raises(ModelNotFound):
        choose(session, "tiny:2")


def test_a_first_version_that_cannot_be_loaded_is_taken_out(platform: Platform, registrar: Registrar) -> None:
    registrar(alias="champion")
    platform.follow()
    platform.says("1", HostingState.FAILED, "config.json is missing")
    platform.follow()
    assert platform.serving() is None
    assert platform.state("1") == "active"
    with platform.database.transaction() as session, pytest.raises(ModelNotFound, match=r"config\.json is missing"):
        choose(session, "tiny")
    platform.says("1", HostingState.READY)
    platform.follow()
    assert platform.serving() == "1"


def test_what_a_dead_worker_said_does_not_count(platform: Platform, registrar: Registrar) -> None:
    registrar(alias="champion")
    make_ready(platform, "1")
    registrar(alias="champion")
    platform.follow()
    platform.says("2", HostingState.READY)
    with platform.database.transaction() as session:
        hosting.remove_worker(session, "wrk_1")
        hosting.register_worker(session, WorkerCard("wrk_2", "test", 2, "cpu", 4))
        session.execute(update(Deployment).values(first_ready_at=None))
    platform.follow()
    assert platform.serving() == "1"


def test_a_removed_alias_ends_new_jobs_with_a_reason(platform: Platform, registrar: Registrar) -> None:
    registrar(alias="champion")
    make_ready(platform, "1")
    registrar.ask("DELETE", "registered-models/alias", name="tiny", alias="champion")
    platform.follow()
    assert platform.serving() is None
    with platform.database.transaction() as session, pytest.raises(ModelNotFound, match="champion names no version"):
        choose(session, "tiny")
    platform.follow()
    assert platform.state("1") == "retired"


def test_a_deleted_model_ends_new_jobs_with_a_reason(platform: Platform, registrar: Registrar) -> None:
    registrar(alias="champion")
    registrar("other", alias="champion")
    make_ready(platform, "1")
    job = platform.submit()
    registrar.ask("DELETE", "registered-models/delete", name="tiny")
    platform.follow()
    assert platform.serving() is None
    assert platform.policy().reason == "the model is gone from MLflow"
    assert platform.job(job.id).state == JobState.QUEUED
    with platform.database.transaction() as session:
        assert choose(session, "other").deployment.model_version == "1"


def test_a_model_that_is_registered_anew_is_another_deployment(platform: Platform, registrar: Registrar) -> None:
    registrar(alias="champion")
    make_ready(platform, "1")
    old = platform.policy().champion_id
    registrar.ask("DELETE", "registered-models/delete", name="tiny")
    registrar(alias="champion")
    make_ready(platform, "1")
    new = platform.policy().champion_id
    assert new != old
    with platform.database.transaction() as session:
        assert choose(session, "tiny:1").deployment.id == new
        assert session.get_one(Deployment, old).state == "draining"


def test_a_version_that_was_not_registered_by_us_is_refused_with_a_reason(
    platform: Platform, registrar: Registrar
) -> None:
    registrar(alias="champion")
    make_ready(platform, "1")
    registrar.ask("POST", "model-versions/create", name="tiny", source="s3://bucket/model")
    registrar.ask("POST", "registered-models/alias", name="tiny", alias="champion", version="2")
    platform.follow()
    assert platform.serving() == "1"
    assert platform.policy().reason.startswith("version 2 is not usable: it has no tag penstock.manifest")


def test_a_name_that_no_job_can_ask_for_is_refused_with_a_reason(platform: Platform, registrar: Registrar) -> None:
    registrar.ask("POST", "registered-models/create", name="a@b")
    registrar.ask("POST", "model-versions/create", name="a@b", source="s3://bucket/model")
    registrar.ask("POST", "registered-models/alias", name="a@b", alias="champion", version="1")
    platform.follow()
    with platform.database.transaction() as session:
        policy = session.get_one(RoutingPolicy, "a@b")
        assert policy.champion_id is None
        assert "its name holds : or @" in policy.reason


def test_the_challenger_takes_jobs_of_its_own_once_it_is_ready(platform: Platform, registrar: Registrar) -> None:
    registrar(alias="champion")
    make_ready(platform, "1")
    registrar(alias="challenger")
    platform.follow()
    assert platform.state("2") == "active"
    assert "the challenger, version 2, takes no jobs: no worker has loaded it yet" in platform.policy().reason
    with platform.database.transaction() as session, pytest.raises(ModelNotFound):
        choose(session, "tiny@challenger")
    platform.says("2", HostingState.READY)
    platform.follow()
    with platform.database.transaction() as session:
        assert choose(session, "tiny@challenger").deployment.model_version == "2"
    assert platform.serving() == "1"
    platform.says("2", HostingState.FAILED, "out of memory")
    platform.follow()
    with platform.database.transaction() as session, pytest.raises(ModelNotFound):
        choose(session, "tiny@challenger")
    assert "takes no jobs: out of memory" in platform.policy().reason


def test_a_folder_that_was_moved_is_followed_by_its_tag(platform: Platform, registrar: Registrar) -> None:
    registrar(alias="champion")
    platform.follow()
    registrar.ask(
        "POST", "model-versions/set-tag",
        name="tiny", version="1", key="penstock.source", value="/srv/models/tiny",
    )  # fmt: skip
    platform.follow()
    with platform.database.transaction() as session:
        (deployment,) = hosting.wanted_deployments(session)
        assert deployment.source == "/srv/models/tiny"


def test_altered_tags_are_refused(platform: Platform, registrar: Registrar) -> None:
    registrar(alias="champion")
    make_ready(platform, "1")
    registrar(alias="champion")
    registrar.ask(
        "POST", "model-versions/set-tag",
        name="tiny", version="2", key="penstock.manifest", value='{"config.json": "0"}',
    )  # fmt: skip
    platform.follow()
    assert platform.serving() == "1"
    assert "do not belong together" in platform.policy().reason
