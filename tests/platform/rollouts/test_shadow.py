"""The shadow gate on a real PostgreSQL: sampled answers are scored by both versions, and never in anybody's way."""

import math

import pytest
from penstock.auth.audit import Actor, ActorKind
from penstock.auth.services import list_tenants
from penstock.auth.system_tenant import SYSTEM_TENANT_ID
from penstock.db import Database
from penstock.events.services import place_committed
from penstock.jobs import lease
from penstock.jobs.journal import Journal
from penstock.jobs.models import Job
from penstock.jobs.states import JobClass, JobState
from penstock.outbox.relay import Relay
from penstock.replay.comparing import sweep_dropped
from penstock.retention.deletion import delete_jobs
from penstock.rollouts import shadow
from penstock.rollouts.evidence import Evidence
from penstock.rollouts.policy import Policy, Shadow
from penstock.rollouts.services import start
from penstock.rollouts.states import Position, State
from penstock.rollouts.verdicts import Verdict, judge
from redis import Redis
from sqlalchemy import text
from sqlalchemy.orm import Session

from tests.factories import submit_job
from tests.platform.replay.house import ANSWER, SURE, UNSURE, House

ANN = Actor(ActorKind.USER, "usr_1", "Ann", "127.0.0.1", ())
POLICY = Policy(offline=None, shadow=Shadow(sampling=1.0, minimum_jobs=1))


@pytest.fixture
def house(database: Database) -> House:
    return House.built(database)


def begun(house: House) -> str:
    with house.database.transaction() as session:
        rollout = start(session, "tiny", "2", POLICY, ANN)
        assert rollout.position == Position(State.SHADOW)
        return rollout.id


def gathered(house: House, rollout_id: str, before: Evidence | None = None) -> Evidence:
    with house.database.transaction() as session:
        rollout = session.merge(house.rollout(rollout_id))
        return shadow.gather(session, rollout, POLICY, before or Evidence())


def ended(house: House, rollout_id: str) -> None:
    with house.database.transaction() as session:
        shadow.end(session, session.merge(house.rollout(rollout_id)), POLICY)


def claim_all(house: House, session: Session, most: int, *, shadows: int) -> list[lease.Claim]:
    return lease.claim_all(
        session,
        worker_id=house.worker_id,
        deployment_id=house.champion.id,
        lease_seconds=60,
        most=most,
        most_shadow=shadows,
    )


def test_an_answer_is_scored_by_both_and_counted_once(house: House) -> None:
    rollout_id = begun(house)
    job_id = house.sampled(rollout_id)
    before = gathered(house, rollout_id)
    assert before.step_units == 0
    pair = house.internal_jobs()
    assert {job.deployment_id for job in pair} == {house.champion.id, house.candidate.id}
    assert {job.job_class for job in pair} == {JobClass.SHADOW}
    assert all(job.input["continuation_token_ids"] == ANSWER for job in pair), "the very tokens"
    house.score(house.champion, SURE)
    assert gathered(house, rollout_id, before).step_units == 0, "the other has not ended"
    house.score(house.candidate, UNSURE)
    evidence = gathered(house, rollout_id, before)
    assert (evidence.step_units, evidence.lost, evidence.crashes) == (1, 0, 0)
    assert evidence.scored["disagreement"].mean == 1.0
    assert evidence.scored["mean_kld"].mean == pytest.approx(0.25 * math.log(2), abs=1e-3)
    assert house.internal_jobs() == [], "they have served"
    (comparison,) = house.comparisons()
    assert (comparison.source_id, comparison.state) == (job_id, "done")
    assert gathered(house, rollout_id, evidence).step_units == 1


def test_a_version_against_its_like_is_promoted_and_another_is_not(house: House) -> None:
    rollout_id, verdicts = begun(house), []
    for likely in (SURE, UNSURE):
        evidence = Evidence()
        for _ in range(60):
            house.sampled(rollout_id)
        while house.comparisons() == [] or any(each.settled_at is None for each in house.comparisons()):
            evidence = gathered(house, rollout_id, evidence)
            for _ in range(len(house.internal_jobs()) // 2):
                house.score(house.champion)
                house.score(house.candidate, likely)
            evidence = gathered(house, rollout_id, evidence)
        assert evidence.step_units == 60
        verdicts.append(judge(Position(State.SHADOW), POLICY, evidence).verdict)
        with house.database.transaction() as session:
            session.execute(text("DELETE FROM comparison"))
    assert verdicts == [Verdict.PROMOTE, Verdict.ROLLBACK]


def test_what_cannot_be_scored_is_told_and_too_much_of_it_holds(database: Database) -> None:
    house = House.built(database, context_length=4)
    rollout_id = begun(house)
    for _ in range(5):
        house.sampled(rollout_id)
    evidence = gathered(house, rollout_id)
    assert (evidence.lost, house.internal_jobs()) == (5, [])
    assert {each.problem for each in house.comparisons()} == {"it has 5 tokens, and the candidate's context 4"}
    judgement = judge(Position(State.SHADOW), POLICY, evidence)
    assert judgement.verdict is Verdict.HOLD
    assert "lost" in [reason.name for reason in judgement.reasons]
    assert judgement.jobs_needed is None


def test_a_candidate_that_fails_to_score_loses_the_answer(house: House) -> None:
    rollout_id = begun(house)
    house.sampled(rollout_id)
    gathered(house, rollout_id)
    house.score(house.champion)
    house.fail(house.candidate)
    assert gathered(house, rollout_id).lost == 1
    assert house.comparisons()[0].problem == "the candidate could not score it: logits_not_finite"
    with house.database.transaction() as session:
        assert session.scalar(text("SELECT count(*) FROM dead_letter")) == 0, "nobody's job"


def test_a_failed_job_has_nothing_to_score(house: House) -> None:
    rollout_id = begun(house)
    house.sampled(rollout_id, state=JobState.FAILED)
    assert gathered(house, rollout_id).lost == 0
    assert house.comparisons() == []


def test_other_tokens_for_the_same_prompt_are_not_compared(house: House) -> None:
    rollout_id = begun(house)
    house.sampled(rollout_id)
    gathered(house, rollout_id)
    house.score(house.champion)
    house.score(house.candidate, prompt=(1, 9))
    assert gathered(house, rollout_id).lost == 1
    assert house.comparisons()[0].problem == "the versions put the prompt into different tokens"


def test_a_job_that_somebody_waits_for_goes_before_any_shadow(house: House) -> None:
    rollout_id = begun(house)
    house.sampled(rollout_id)
    gathered(house, rollout_id)
    with house.database.transaction() as session:
        late = submit_job(session, house.tenant, priority=-100).id
    assert house.claim(house.champion).job.id == late
    with house.database.transaction() as session:
        assert claim_all(house, session, 3, shadows=0) == [], "where slots are kept free"
        assert len(claim_all(house, session, 3, shadows=2)) == 1


def test_claims_that_leave_shadows_little_room_take_the_others_first(house: House) -> None:
    rollout_id = begun(house)
    for _ in range(3):
        house.sampled(rollout_id)
    gathered(house, rollout_id)
    with house.database.transaction() as session:
        real = {submit_job(session, house.tenant).id for _ in range(2)}
        claims = claim_all(house, session, 5, shadows=1)
    assert {claim.job.id for claim in claims[:2]} == real
    assert [claim.job.job_class for claim in claims] == [0, 0, 2]


def test_shadows_are_rung_for_only_where_slots_stay_free(house: House, database: Database, redis: Redis) -> None:
    rollout_id = begun(house)
    for _ in range(9):
        house.sampled(rollout_id)
    gathered(house, rollout_id)
    rung: list[str] = []

    class Bell:
        def send_task(self, name: str, *, args: list[str], queue: str) -> None:
            rung.append(queue)

    with database.transaction() as session:
        relay = Relay(database, redis, Bell())
        relay.ring(session, [house.champion.id])
    assert len(rung) == 3, "of four slots one is kept free"


def test_nobody_sees_the_systems_own_jobs(house: House) -> None:
    rollout_id = begun(house)
    house.sampled(rollout_id)
    gathered(house, rollout_id)
    house.score(house.champion)
    with house.database.transaction() as session:
        place_committed(session)
        assert SYSTEM_TENANT_ID not in [tenant.id for tenant in list_tenants(session)]
        for table in ("usage_entry", "feed_event", "webhook_delivery"):
            told = f"SELECT count(*) FROM {table} WHERE tenant_id = '{SYSTEM_TENANT_ID}'"
            assert session.scalar(text(told)) == 0, table
        assert session.scalar(text("SELECT count(*) FROM usage_entry")) == 1, "the real job's"


def test_its_end_leaves_nothing_under_way(house: House) -> None:
    rollout_id = begun(house)
    for _ in range(2):
        house.sampled(rollout_id)
    gathered(house, rollout_id)
    running = house.claim(house.champion)
    ended(house, rollout_id)
    with house.database.transaction() as session:
        assert session.get_one(Job, running.job.id).cancel_requested_at is not None
        assert sweep_dropped(session, most=10) == 1, "of the other one job still runs"
    house.finish(running, [], JobState.CANCELLED)
    with house.database.transaction() as session:
        assert sweep_dropped(session, most=10) == 1
    assert house.internal_jobs() == []
    assert gathered(house, rollout_id).step_units == 0


def test_erasing_a_job_erases_what_reads_it(house: House, redis: Redis) -> None:
    rollout_id = begun(house)
    job_id = house.sampled(rollout_id)
    gathered(house, rollout_id)
    journal, claim = Journal(redis, "test"), house.claim(house.champion)
    journal.open(claim.job.id, claim.fence)
    with house.database.transaction() as session:
        delete_jobs(session, journal, [job_id])
    assert (house.internal_jobs(), house.comparisons()) == ([], [])
    held = lease.Held(claim.job.id, claim.fence)
    with house.database.transaction() as session:
        renewed = lease.renew(session, worker_id=house.worker_id, held=[held], lease_seconds=60)
    assert renewed == {}, "its holder lets go"
    assert gathered(house, rollout_id).lost == 0
