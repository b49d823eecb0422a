"""Rollouts as they are kept, on a real PostgreSQL: every move is one transaction and stands in the ledger."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

import pytest
from penstock.auth.audit import Actor, ActorKind
from penstock.db import Database
from penstock.deployments.placement import Desired, HostingMode
from penstock.deployments.services import place
from penstock.errors import AlreadyExists, ModelNotFound, NotFound, RolloutMoveRefused
from penstock.registry.models import Deployment
from penstock.rollouts.evidence import EVIDENCE, Comparison, Evidence, OfflineFigures
from penstock.rollouts.lead import Lead, LeadLost, release, take
from penstock.rollouts.ledger import JUDGEMENT, ledger
from penstock.rollouts.models import Decision, GateResult, Rollout
from penstock.rollouts.policy import Policy
from penstock.rollouts.services import (
    abort,
    conclude,
    pause,
    resume,
    roll_back,
    start,
    under_way,
)
from penstock.rollouts.states import Position, State
from penstock.rollouts.statistics import Sample, Tally
from penstock.rollouts.verdicts import Verdict, judge
from sqlalchemy import func, select, text
from sqlalchemy.exc import IntegrityError

from tests.factories import make_deployment, make_tenant, make_worker

ANN = Actor(ActorKind.USER, "usr_1", "Ann", "127.0.0.1", ())
POLICY = Policy(shadow=None)
OFFLINE = Evidence(offline=OfflineFigures(8, 50_000, Comparison(0.001, 0.995, 0.001, 0.01)))
GOOD = Evidence(
    step_units=2500,
    units=Tally().plus(0.5, 2500, 2500),
    failures=Tally().plus(0.5, 25, 25),
    pairs={"errors": Sample(((0, 2500),)), "slow": Sample(((0, 2500),))},
)
HARMED = replace(GOOD, failures=Tally().plus(0.01, 9, 20))


@pytest.fixture
def lead(database: Database) -> Lead:
    with database.transaction() as session:
        make_deployment(session)
        make_deployment(session, version="2", champion=False)
        taken = take(session, "rollouts", "test", 600)
    assert taken
    return taken


def begun(database: Database, policy: Policy = POLICY) -> str:
    with database.transaction() as session:
        return start(session, "tiny", "2", policy, ANN).id


def judged(database: Database, lead: Lead, rollout_id: str, evidence: Evidence) -> Verdict | None:
    with database.transaction() as session:
        fence = session.get_one(Rollout, rollout_id).fence
        judgement = conclude(session, lead, rollout_id, fence, evidence)
        return None if judgement is None else judgement.verdict


def position(database: Database, rollout_id: str) -> Position:
    with database.transaction() as session:
        return session.get_one(Rollout, rollout_id).position


def test_a_rollout_earns_its_way_and_the_ledger_tells_how(database: Database, lead: Lead) -> None:
    rollout_id = begun(database)
    assert position(database, rollout_id) == Position(State.OFFLINE)
    assert judged(database, lead, rollout_id, Evidence()) is Verdict.HOLD
    assert position(database, rollout_id) == Position(State.OFFLINE)
    for evidence in (OFFLINE, GOOD, GOOD, GOOD, GOOD):
        assert judged(database, lead, rollout_id, evidence) is Verdict.PROMOTE
    assert position(database, rollout_id).state is State.PROMOTED
    with database.transaction() as session:
        moves = ledger(session, rollout_id)
        assert [move.number for move in moves] == [1, 2, 3, 4, 5, 6]
        assert [move.move for move in moves] == ["start", *["promote"] * 5]
        assert [move.actor_name for move in moves] == ["Ann", *["the controller of rollouts"] * 5]
        assert (moves[2].from_state, moves[2].from_step, moves[2].to_state, moves[2].to_step) == (
            "canary",
            0,
            "canary",
            1,
        )
        assert {move.policy_version for move in moves} == {POLICY.version}
        assert moves[0].evidence is None
        for move in moves[1:]:
            again = judge(
                Position(State(move.from_state or ""), move.from_step or 0),
                POLICY,
                EVIDENCE.validate_python(move.evidence),
            )
            assert JUDGEMENT.dump_python(again, mode="json") == move.judgement, "it can be judged again"


def test_a_gate_keeps_its_last_judgement(database: Database, lead: Lead) -> None:
    rollout_id = begun(database, Policy(offline=None, shadow=None))
    for step_units in (5, 10):
        assert judged(database, lead, rollout_id, replace(GOOD, step_units=step_units)) is Verdict.HOLD
    with database.transaction() as session:
        kept = session.get_one(GateResult, (rollout_id, "canary", 0))
        assert EVIDENCE.validate_python(kept.evidence).step_units == 10
        assert JUDGEMENT.validate_python(kept.judgement).verdict is Verdict.HOLD
        assert kept.judgement["jobs_needed"] == 1000
        assert session.scalar(select(func.count()).select_from(GateResult)) == 1


def test_harm_ends_it_and_the_next_may_begin(database: Database, lead: Lead) -> None:
    rollout_id = begun(database, Policy(offline=None, shadow=None))
    assert judged(database, lead, rollout_id, HARMED) is Verdict.ROLLBACK
    assert position(database, rollout_id).state is State.ROLLED_BACK
    assert judged(database, lead, rollout_id, GOOD) is None, "what has ended is not judged again"
    with database.transaction() as session:
        assert under_way(session) == []
        assert session.get_one(Decision, ledger(session, rollout_id)[-1].id).judgement["verdict"] == "rollback"  # type: ignore[index]  # it has one
    assert begun(database) != rollout_id


def test_evidence_of_another_gate_moves_nothing(database: Database, lead: Lead) -> None:
    rollout_id = begun(database)
    assert judged(database, lead, rollout_id, OFFLINE) is Verdict.PROMOTE
    with database.transaction() as session:
        assert conclude(session, lead, rollout_id, 1, HARMED) is None
    assert position(database, rollout_id) == Position(State.CANARY, 0)


def test_who_has_lost_the_lead_writes_nothing(database: Database, lead: Lead) -> None:
    rollout_id = begun(database)
    with database.transaction() as session:
        release(session, lead)
    with pytest.raises(LeadLost):
        judged(database, lead, rollout_id, OFFLINE)
    assert position(database, rollout_id) == Position(State.OFFLINE)
    with database.transaction() as session:
        assert session.scalar(select(func.count()).select_from(GateResult)) == 0


def test_operators_pause_resume_and_abort(database: Database, lead: Lead) -> None:
    rollout_id = begun(database)
    with database.transaction() as session:
        pause(session, rollout_id, ANN, "on holiday")
    assert position(database, rollout_id) == Position(State.PAUSED, paused_in=State.OFFLINE)
    assert judged(database, lead, rollout_id, OFFLINE) is None, "a paused rollout is not judged"
    with database.transaction() as session:
        resume(session, rollout_id, ANN)
    assert position(database, rollout_id) == Position(State.OFFLINE)
    with database.transaction() as session:
        abort(session, rollout_id, ANN, "the wrong file")
        assert [(move.move, move.reason) for move in ledger(session, rollout_id)] == [
            ("start", None),
            ("pause", "on holiday"),
            ("resume", None),
            ("abort", "the wrong file"),
        ]


def test_a_move_that_is_none_is_refused_and_changes_nothing(database: Database, lead: Lead) -> None:
    rollout_id = begun(database)
    with (
        pytest.raises(RolloutMoveRefused, match="offline takes no resume") as refused,
        database.transaction() as session,
    ):
        resume(session, rollout_id, ANN)
    assert refused.value.extra == {"state": "offline"}
    with database.transaction() as session:
        assert len(ledger(session, rollout_id)) == 1
    with pytest.raises(NotFound, match="no rollout 'rol_x'"), database.transaction() as session:
        pause(session, "rol_x", ANN)


def test_an_operator_takes_a_promotion_back(database: Database, lead: Lead) -> None:
    rollout_id = begun(database, Policy(offline=None, shadow=None))
    for _ in range(4):
        judged(database, lead, rollout_id, GOOD)
    with database.transaction() as session:
        assert roll_back(session, rollout_id, ANN, "customers complain").position.state is State.ROLLED_BACK


def test_a_model_has_one_rollout_at_a_time(database: Database, lead: Lead) -> None:
    both = Barrier(2)

    def begin(_: int) -> str:
        with database.transaction() as session:
            both.wait(30)
            return start(session, "tiny", "2", POLICY, ANN).id

    with ThreadPoolExecutor(2) as pool:
        found = [pool.submit(begin, number) for number in range(2)]
        errors = [type(future.exception(timeout=60)) for future in found]
    assert sorted(errors, key=str) == [type(None), AlreadyExists]
    with database.transaction() as session:
        (only,) = under_way(session)
        pause(session, only.id, ANN)
    with pytest.raises(AlreadyExists, match="a rollout of tiny is under way"):
        begun(database)


def test_there_must_be_two_versions(database: Database, lead: Lead) -> None:
    for name, version, says in (
        ("huge", "2", "no version of 'huge' serves jobs"),
        ("tiny", "3", "version 3 of 'tiny' is hosted nowhere"),
        ("tiny", "1", "version 1 of 'tiny' serves already"),
    ):
        with pytest.raises(ModelNotFound, match=says), database.transaction() as session:
            start(session, name, version, POLICY, ANN)


def test_the_ledger_stays_as_it_was_written(database: Database, lead: Lead) -> None:
    begun(database)
    with pytest.raises(IntegrityError, match="a decision stays as it was written"), database.transaction() as session:
        session.execute(text("UPDATE decision SET actor_name = 'somebody else'"))


def test_the_database_keeps_states_to_the_table(database: Database, lead: Lead) -> None:
    begun(database)
    for nonsense in ("state = 'winning'", "state = 'paused'", "paused_in = 'canary'", "candidate_id = champion_id"):
        with pytest.raises(IntegrityError), database.transaction() as session:
            session.execute(text(f"UPDATE rollout SET {nonsense}"))


def test_a_version_that_is_placed_where_no_worker_is_cannot_be_tried(database: Database, lead: Lead) -> None:
    with database.transaction() as session:
        candidate = session.scalars(select(Deployment).where(Deployment.model_version == "2")).one()
        worker = make_worker(session, candidate)
        for wish, told in ((Desired(replicas=0), "replicas is 0"), (Desired(workers=("h200",)), "label h200")):
            place(session, candidate.id, wish, ANN, tenant_id=make_tenant(session).id)
            with pytest.raises(ModelNotFound, match=told) as refused:
                start(session, "tiny", "2", POLICY, ANN)
            assert refused.value.field == "version"
        elsewhere = Desired(workers=(worker.hostname,), mode=HostingMode.COLD)
        place(session, candidate.id, elsewhere, ANN, tenant_id=make_tenant(session).id)
        assert start(session, "tiny", "2", POLICY, ANN).state == State.OFFLINE
