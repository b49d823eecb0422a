"""Replays on a real PostgreSQL: stored jobs against another version, step by step, with workers by hand."""

import pytest
from penstock.auth.audit import Actor, ActorKind
from penstock.db import Database
from penstock.errors import ModelNotFound, ReplayFinished
from penstock.jobs.models import Job
from penstock.jobs.states import JobState
from penstock.registry.models import RoutingPolicy
from penstock.replay import services as replays
from penstock.replay.answers import is_valid
from penstock.replay.documents import ReplayReport, replay_document
from penstock.replay.markdown import markdown_of
from penstock.replay.models import Replay
from penstock.replay.report import found_by
from penstock.replay.schemas import ReplayRequest
from penstock.replay.tending import ReplayTender
from sqlalchemy import delete, func, update

from tests.platform.replay.house import ANSWER, SURE, UNSURE, House

ANN = Actor(ActorKind.USER, "usr_1", "Ann", "127.0.0.1", ())


@pytest.fixture
def house(database: Database) -> House:
    return House.built(database)


def begun(house: House, **asked: object) -> str:
    with house.database.transaction() as session:
        return replays.begin(session, ReplayRequest.model_validate({"model": "tiny:2"} | asked), ANN).id


def work(house: House) -> None:
    """Take every step that is to be taken now."""
    tender = ReplayTender(house.database, sweep_seconds=1)
    with house.database.transaction() as session:
        session.execute(update(Replay).values(due_at=func.now()))
    while tender.work_once():
        pass


def report(house: House, replay_id: str) -> ReplayReport:
    with house.database.transaction() as session:
        replay = replays.get(session, replay_id)
        document = replay_document(replay, replays.versions_of(session, [replay]))
        return ReplayReport.model_validate({"replay": document, **found_by(session, replay)})


def test_stored_answers_are_scored_by_both_versions(house: House) -> None:
    jobs = [house.answered() for _ in range(3)]
    house.answered(state=JobState.FAILED)
    replay_id = begun(house)
    work(house)
    assert report(house, replay_id).replay.total == 3, "those that succeeded"
    for likely in (SURE, SURE, UNSURE):
        house.score(house.champion)
        house.score(house.candidate, likely)
    work(house)
    found = report(house, replay_id)
    assert (found.replay.status, found.replay.done, found.replay.lost) == ("completed", 3, 0)
    assert found.scored is not None
    assert (found.scored.answers, found.scored.tokens) == (3, 9)
    assert found.scored.disagreement == pytest.approx(1 / 3)
    assert found.scored.alike == pytest.approx(2 / 3)
    assert found.answered is None
    (far,) = found.furthest
    assert far.job in jobs
    assert far.disagreement == 1
    assert house.internal_jobs() == []
    page = markdown_of(found.model_dump(mode="json"))
    assert "version 2 on the jobs of version 1" in page
    assert "66.67%" in page


def test_answers_anew_are_compared_with_the_stored_ones(house: House) -> None:
    for _ in range(4):
        house.answered()
    replay_id = begun(house, mode="free")
    work(house)
    for answer in (ANSWER, ANSWER, [5, 9, 9, 9]):
        claim = house.claim(house.candidate)
        assert claim.job.kind == "generate"
        house.finish(claim, answer)
    house.fail(house.candidate)
    work(house)
    found = report(house, replay_id)
    assert found.answered is not None
    assert (found.answered.answers, found.answered.failed) == (3, 1)
    assert found.answered.errors == {"logits_not_finite": 1}
    assert found.answered.exact == pytest.approx(2 / 3)
    assert found.answered.mean_first_difference == 1
    assert found.answered.stored.mean_tokens == 3
    assert found.answered.new.mean_tokens == pytest.approx(10 / 3)
    assert found.scored is None
    assert "logits_not_finite: 1" in markdown_of(found.model_dump(mode="json"))


def test_both_ways_at_once_and_another_process_goes_on(house: House) -> None:
    """Every step is taken by a tender of its own, as if each were a new process."""
    for _ in range(20):
        house.answered()
    replay_id = begun(house, mode="both", limit=18)
    for _ in range(2):
        work(house)
        for _ in range(len(house.internal_jobs()) // 3):
            house.score(house.champion)
            for _ in range(2):
                if (claim := house.claim(house.candidate)).job.kind == "generate":
                    house.finish(claim, ANSWER)
                else:
                    house.told(claim, SURE)
    work(house)
    found = report(house, replay_id)
    assert (found.replay.status, found.replay.total, found.replay.done) == ("completed", 18, 18)
    assert found.scored is not None
    assert found.answered is not None
    assert (found.scored.answers, found.answered.answers, found.answered.exact) == (18, 18, 1)


def test_only_the_jobs_that_were_asked_for(house: House) -> None:
    old, new = house.answered(), house.answered()
    with house.database.transaction() as session:
        session.execute(
            update(Job).where(Job.id == old).values(finished_at=func.now() - func.make_interval(0, 0, 0, 2))
        )
        moment = session.get_one(Job, new).finished_at
    assert moment is not None
    for asked, expected in (
        ({"since": moment.isoformat()}, [new]),
        ({"until": moment.isoformat()}, [old]),
        ({"limit": 1}, [new]),
        ({"tenant": house.tenant.id}, [new, old]),
    ):
        begun(house, **asked)
        work(house)
        found = [each.source_id for each in house.comparisons()]
        assert sorted(found) == sorted(expected), asked
        with house.database.transaction() as session:
            session.execute(delete(Replay))


def test_a_replay_that_is_cancelled_leaves_nothing_waiting(house: House) -> None:
    house.answered()
    replay_id = begun(house)
    work(house)
    assert len(house.internal_jobs()) == 2
    with house.database.transaction() as session:
        assert replays.cancel(session, replay_id, ANN).state == "cancelled"
    work(house)
    assert house.internal_jobs() == []
    with house.database.transaction() as session:
        assert replays.cancel(session, replay_id, ANN).state == "cancelled", "again changes nothing"


def test_a_completed_replay_cannot_be_cancelled(house: House) -> None:
    replay_id = begun(house)
    work(house)
    with house.database.transaction() as session, pytest.raises(ReplayFinished):
        replays.cancel(session, replay_id, ANN)


def test_which_versions_are_meant(house: House) -> None:
    with house.database.transaction() as session:
        session.get_one(RoutingPolicy, "tiny").challenger_id = house.candidate.id
    with house.database.transaction() as session:
        replay = replays.begin(session, ReplayRequest(model="tiny@challenger"), ANN)
        assert (replay.candidate_id, replay.reference_id) == (house.candidate.id, house.champion.id)
    with house.database.transaction() as session:
        for model in ("tiny:9", "other", "tiny@newest"):
            with pytest.raises(ModelNotFound):
                replays.begin(session, ReplayRequest(model=model), ANN)
    with house.database.transaction() as session, pytest.raises(ModelNotFound) as refused:
        replays.begin(session, ReplayRequest(model="tiny:2", against="other"), ANN)
    assert refused.value.field == "against"
    with pytest.raises(ValueError, match="later than since"):
        ReplayRequest.model_validate(
            {"model": "tiny", "since": "2026-01-02T00:00:00Z", "until": "2026-01-01T00:00:00Z"}
        )


@pytest.mark.parametrize(
    ("wanted", "text", "valid"),
    [
        ({"type": "json_object"}, '{"a": 1}', True),
        ({"type": "json_object"}, '{"a": ', False),
        ({"type": "json_schema", "schema": {"type": "object", "required": ["a"]}}, '{"b": 1}', False),
        ({"type": "json_schema", "schema": {"type": "array"}}, "[1]", True),
        ({"type": "regex", "regex": "a+"}, "aab", False),
        ({"type": "choice", "choice": ["yes", "no"]}, "no", True),
        ({"type": "lark", "lark": "start: A"}, "A", None),
        (None, "anything", None),
    ],
)
def test_whether_an_answer_has_the_form_that_was_asked_for(wanted: object, text: str, valid: bool | None) -> None:
    assert is_valid(wanted, text) is valid  # type: ignore[arg-type]  # formats as rows keep them
