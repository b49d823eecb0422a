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
from penstock.jobs.states import JobClass, JobState, RunOutcome
from penstock.outbox.relay import Relay
from penstock.registry.models import Deployment
from penstock.replay.comparing import sweep_dropped
from penstock.retention.deletion import delete_jobs
from penstock.rollouts import shadow
from penstock.rollouts.evidence import EVIDENCE, Evidence
from penstock.rollouts.policy import Policy, Shadow
from penstock.rollouts.services import start
from penstock.rollouts.states import Position, State
from penstock.rollouts.verdicts import Verdict, judge
from redis import Redis
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from tests.factories import submit_job
from tests.platform.replay.house import ANSWER, SURE, UNSURE, House

ANN = Actor(ActorKind.USER, "usr_1", "Ann", "127.0.0.1", ())
POLICY = Policy(offline=None, shadow=Shadow(sampling=1.0, free_running=0.0, minimum_jobs=1))
FREE = Policy(offline=None, shadow=Shadow(sampling=1.0, free_running=1.0, minimum_jobs=1))


@pytest.fixture
def house(database: Database) -> House:
    return House.built(database)


def begun(house: House) -> str:
    with house.database.transaction() as session:
        rollout = start(session, "tiny", "2", POLICY, ANN)
        assert rollout.position == Position(State.SHADOW)
        return rollout.id


def gathered(house: House, rollout_id: str, before: Evidence | None = None, policy: Policy = POLICY) -> Evidence:
    with house.database.transaction() as session:
        rollout = session.merge(house.rollout(rollout_id))
        return shadow.gather(session, rollout, policy, before or Evidence())


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


def swept(house: House) -> int:
    with house.database.transaction() as session:
        return sweep_dropped(session, most=10)


def test_its_end_leaves_nothing_under_way(house: House) -> None:
    rollout_id = begun(house)
    for _ in range(2):
        house.sampled(rollout_id)
    gathered(house, rollout_id)
    running = house.claim(house.champion)
    ended(house, rollout_id)
    assert swept(house) == 1, "of the other one job still runs"
    (left,) = house.internal_jobs()
    assert left.id == running.job.id
    assert left.cancel_requested_at is not None
    assert swept(house) == 0
    house.finish(running, [], JobState.CANCELLED)
    assert swept(house) == 1
    assert house.internal_jobs() == []
    assert gathered(house, rollout_id).step_units == 0


def test_its_end_waits_for_nobody_who_has_its_jobs_locked(house: House) -> None:
    """Claims and ends of jobs hold them, and the rollout's move may not wait, nor keep anybody waiting."""
    rollout_id = begun(house)
    for _ in range(2):
        house.sampled(rollout_id)
    gathered(house, rollout_id)
    with house.database.transaction() as busy:
        locked = busy.scalars(select(Job).where(Job.deployment_id == house.candidate.id).with_for_update()).all()
        assert len([job for job in locked if job.job_class == JobClass.SHADOW]) == 2
        with house.database.transaction() as session:
            session.execute(text("SET LOCAL lock_timeout = '1ms'"))
            shadow.end(session, session.merge(house.rollout(rollout_id)), POLICY)
            (others,) = session.execute(text("SELECT count(*) FROM job WHERE job_class = 2 AND state = 'queued'")).one()
            assert others == 4, "nothing but the comparisons was touched"
        assert swept(house) == 0
        assert {job.deployment_id for job in house.internal_jobs()} == {house.candidate.id}
    assert swept(house) == 2
    assert house.internal_jobs() == []


def test_answers_of_its_own_are_compared_and_no_failure_is_left_out(house: House) -> None:
    rollout_id, evidence = begun(house), Evidence()
    for state in (JobState.SUCCEEDED, JobState.SUCCEEDED, JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED):
        house.sampled(rollout_id, state=state)
    evidence = gathered(house, rollout_id, evidence, FREE)
    anew = [job for job in house.internal_jobs() if job.kind == "generate"]
    assert [job.deployment_id for job in anew] == [house.candidate.id] * 4, "that of the failed one, too"
    assert {(job.job_class, job.deadline, job.seed is None) for job in anew} == {(JobClass.SHADOW, None, False)}
    answers = iter((ANSWER, [5, 9, 9], None, ANSWER))
    for _ in range(3):
        house.score(house.champion)
    for _ in range(7):
        claim = house.claim(house.candidate)
        if claim.job.kind == "score":
            house.told(claim, SURE)
        elif (answer := next(answers)) is None:
            house.finish(claim, [], JobState.FAILED)
        else:
            house.finish(claim, answer)
    evidence = gathered(house, rollout_id, evidence, FREE)
    free = evidence.free
    assert (evidence.step_units, evidence.lost) == (3, 0), "what is scored is scored all the same"
    assert (free.jobs, free.answered, free.exact, free.timed) == (4, 2, 1, 2)
    assert (free.candidate.failures, free.champion.failures) == (1, 1)
    assert dict(free.errors.counts) == {-1000: 1, 0: 2, 1000: 1}
    assert free.candidate.seconds > 0
    assert free.champion.seconds > 0
    assert house.internal_jobs() == []
    assert EVIDENCE.validate_json(evidence.to_json()) == evidence


def test_a_request_that_crashes_both_versions_is_not_the_candidates_fault(house: House) -> None:
    rollout_id = begun(house)
    with house.database.transaction() as session:
        job_id = submit_job(session, house.tenant).id
    crash(house, house.champion, job_id, times=3)
    house.sample(rollout_id, job_id)
    gathered(house, rollout_id, policy=FREE)
    (anew,) = house.internal_jobs()
    crash(house, house.candidate, anew.id, times=3)
    evidence = gathered(house, rollout_id, policy=FREE)
    assert (evidence.crashes, evidence.free.candidate.failures, evidence.free.champion.failures) == (0, 1, 1)


def crash(house: House, deployment: Deployment, job_id: str, *, times: int) -> None:
    """Its engine, so often, while it runs nothing but this job."""
    for _ in range(times):
        claim = house.claim(deployment)
        assert claim.job.id == job_id
        with house.database.transaction() as session:
            held = lease.Held(job_id, claim.fence)
            lease.hand_back(session, held, RunOutcome.CRASHED_ALONE, "it crashed", max_own_crashes=times)


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
