"""Shadow jobs make way, on a real database and a real Redis; the engine takes requests and never answers."""

import pytest
from penstock.db import Database
from penstock.fairness.kept_free import kept_free, kept_free_of
from penstock.jobs.models import Job
from penstock.jobs.states import JobClass, RunOutcome
from penstock_worker.bridge import Bridge
from penstock_worker.messages import EngineSpec, StepReport
from penstock_worker.way import MADE_WAY, Way
from sqlalchemy import literal, select, update

from tests.patience import eventually
from tests.worker.test_serving import House, Server, run_reasons
from tests.worker.test_serving import house as house
from tests.worker.test_serving import tokenizer as tokenizer

SLOTS = 4


@pytest.fixture
def server(house: House) -> Server:
    """One deployment on a worker of four slots, of which shadow jobs leave one free."""
    server = house.deploy()
    server.bridge = Bridge(EngineSpec("/nowhere", 64), house.writer, places=64, stall_seconds=60)
    server.bridge._report = StepReport(0, 0, 64)  # the engine has room: it is the slots that run out
    house.serving._way = Way(house.held, house.writer, SLOTS)
    return server


def shadows(house: House, count: int) -> list[str]:
    ids = [house.submit() for _ in range(count)]
    with house.database.transaction() as session:
        session.execute(update(Job).where(Job.id.in_(ids)).values(job_class=JobClass.SHADOW.value))
    return ids


def states(house: House, ids: list[str]) -> list[str]:
    return sorted(house.row(job_id).state for job_id in ids)


def test_shadow_jobs_leave_a_slot_and_give_back_what_others_need(house: House, server: Server) -> None:
    ids = shadows(house, 5)
    threads = [house.answer(server) for _ in range(SLOTS)]
    eventually(lambda: len(house.running()) == 3, "three shadow jobs")
    eventually(lambda: sum(thread.is_alive() for thread in threads) == 3, "the return of the fourth thread")
    assert states(house, ids) == ["queued", "queued", "running", "running", "running"]

    real = house.submit()
    house.answer(server)
    eventually(lambda: house.row(real).state == "running", "a slot for the job at once")
    eventually(lambda: states(house, ids).count("queued") == 3, "a shadow job that made way")
    eventually(lambda: len(house.held) == 3, "its slot")
    assert (RunOutcome.HANDED_BACK, MADE_WAY.reason) in run_reasons(house.database)

    for _ in range(2):
        house.submit()
        house.answer(server)
    eventually(lambda: states(house, ids).count("queued") == 5, "all of them")
    eventually(lambda: len(house.held) == 3, "the others alone")


def test_shadow_jobs_go_on_when_there_is_room_again(house: House, server: Server) -> None:
    real = [house.submit() for _ in range(3)]
    threads = [house.answer(server) for _ in real]
    eventually(lambda: len(house.running()) == 3, "three jobs")
    (shadow,) = shadows(house, 1)
    house.answer(server).join()
    assert house.row(shadow).state == "queued", "the last slot is kept"
    house.let_go()
    eventually(lambda: house.row(shadow).state == "running", "the shadow job")
    assert len(threads) == 3


@pytest.mark.parametrize(("slots", "kept"), [(1, 0), (2, 1), (3, 1), (4, 1), (7, 1), (8, 2), (256, 64)])
def test_how_many_slots_are_kept(database: Database, slots: int, kept: int) -> None:
    """The same in Python and in SQL."""
    with database.transaction() as session:
        assert session.scalar(select(kept_free_of(literal(slots)))) == kept
    assert kept_free(slots) == kept
