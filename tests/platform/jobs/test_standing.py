"""What a waiting job says of itself: its place in the order of claims, what it waits for, and when its end comes."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from penstock.auth.models import Tenant
from penstock.clock import between_words
from penstock.db import Database
from penstock.fairness import places
from penstock.jobs import lease
from penstock.jobs.journal import JournalEntry
from penstock.jobs.models import Job
from penstock.jobs.standing import Blocker, EtaUnknown, Standing, standing_of
from penstock.jobs.states import JobState
from penstock.registry.models import Deployment, Hosting, Worker
from sqlalchemy import text, update
from sqlalchemy.orm import Session

from tests.factories import make_deployment, make_tenant, make_worker, submit_job


def standing(session: Session, job: Job) -> Standing:
    found = standing_of(session, session.get_one(Job, job.id, populate_existing=True))
    assert found is not None
    return found


def claim(session: Session, deployment: Deployment, worker: Worker) -> lease.Claim:
    taken = lease.claim(session, worker_id=worker.id, deployment_id=deployment.id, lease_seconds=60)
    assert taken is not None
    return taken


def run_one(session: Session, deployment: Deployment, worker: Worker, seconds: float) -> None:
    """Claim and finish a job that is made to have taken so long."""
    taken = claim(session, deployment, worker)
    entries = [JournalEntry(0, 0, 1, "x", None, 1)]
    held = lease.Held(taken.job.id, taken.fence)
    lease.finish(session, held, lease.Finish(JobState.SUCCEEDED, entries, prompt_tokens=2))
    ran = {"started_at": Job.finished_at - timedelta(seconds=seconds)}
    session.execute(update(Job).where(Job.id == taken.job.id).values(ran))


def make_jobs(session: Session, tenants: Sequence[Tenant], plan: str, **body: Any) -> list[Job]:
    """A job for each digit of the plan, of the tenant with that number."""
    made = []
    for number, digit in enumerate(plan):
        job = submit_job(session, tenants[int(digit)], **body)
        # All in one transaction were queued at one moment: let them differ as those of several do.
        session.execute(
            update(Job).where(Job.id == job.id).values(queued_at=Job.queued_at + timedelta(milliseconds=number))
        )
        made.append(job)
    return made


@pytest.mark.parametrize("depth", [1, 2, 50])
@pytest.mark.parametrize("plan", ["00000", "000111222", "222100012", "0120000001"])
def test_places_are_the_order_in_which_claims_are_made(
    database: Database, monkeypatch: pytest.MonkeyPatch, plan: str, depth: int
) -> None:
    monkeypatch.setattr(places, "_DEPTHS", (depth, places.MOST_COUNTED + 1))
    with database.transaction() as session:
        deployment = make_deployment(session)
        tenants = [make_tenant(session) for _ in range(3)]
        tenants[1].weight, tenants[2].weight = 2.0, 0.5
        worker = make_worker(session, deployment)
        waiting = make_jobs(session, tenants, plan[::2]) + make_jobs(
            session, tenants, plan[1::2], **{"class": "batch", "input": {"prompt": "some more words here"}}
        )
        told = {job.id: standing(session, job).position for job in waiting}
        order = [claim(session, deployment, worker).job.id for _ in waiting]
    assert told == {job_id: place for place, job_id in enumerate(order, start=1)}


def test_those_ahead_are_counted_and_only_ones_own_are_named(database: Database) -> None:
    with database.transaction() as session:
        make_deployment(session)
        mine, other = make_tenant(session), make_tenant(session)
        jobs = make_jobs(session, [mine, other], "0011000000")
        place = standing(session, jobs[-1]).place
    assert place is not None
    assert (place.own, place.others, place.more) == (7, 2, False)
    own = [jobs[at].id for at in (0, 1, 4, 5, 6)]
    assert list(place.own_jobs) == own


def test_beyond_a_bound_places_are_not_counted(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "MOST_COUNTED", 3)
    with database.transaction() as session:
        deployment = make_deployment(session)
        jobs = make_jobs(session, [make_tenant(session), make_tenant(session)], "00001111")
        last, near = (standing(session, jobs[at]) for at in (-1, 1))
        run_one(session, deployment, make_worker(session, deployment), 1.0)
        late = standing(session, jobs[-1])
    assert last.document["position"] == 4
    assert last.document["position_is_exact"] is False
    assert last.document["ahead"] is None
    assert near.document["position_is_exact"] is True
    assert late.eta_unknown is EtaUnknown.TOO_FAR_BACK


def test_it_says_what_it_waits_for(database: Database) -> None:
    with database.transaction() as session:
        deployment = make_deployment(session)
        job = submit_job(session, make_tenant(session))
        assert _told(session, job) == (Blocker.NO_WORKER, "no worker hosts version 1 of tiny: no worker is live")
        worker = make_worker(session, deployment, slots=1, state="loading")
        session.execute(update(Hosting).values(progress=0.4))
        assert _told(session, job) == (Blocker.LOADING, "version 1 of tiny is loading (40%)")
        assert standing(session, job).progress == pytest.approx(0.4)
        session.execute(update(Hosting).values(state="failed", error="weights.bin is cut off"))
        assert _told(session, job) == (
            Blocker.LOAD_FAILED,
            "version 1 of tiny could not be loaded: weights.bin is cut off",
        )
        session.execute(update(Hosting).values(state="cold", error=None))
        assert _told(session, job) == (Blocker.COLD, "version 1 of tiny is cold, and a worker is about to load it")
        session.execute(update(Hosting).values(state="ready"))
        assert _told(session, job) == (Blocker.DOORBELL, "a worker is about to take it")
        session.execute(update(Worker).values(draining=True))
        assert _told(session, job)[0] is Blocker.DRAINING
        session.execute(update(Worker).values(heartbeat_at=text("now() - interval '1 minute'")))
        assert _told(session, job)[0] is Blocker.NO_WORKER
        session.execute(update(Worker).values(heartbeat_at=text("now()"), draining=False))
        claim(session, deployment, worker)
        assert standing_of(session, session.get_one(Job, job.id, populate_existing=True)) is None


def test_full_slots_say_how_many_go_before_it(database: Database) -> None:
    with database.transaction() as session:
        deployment = make_deployment(session)
        mine, other = make_tenant(session), make_tenant(session)
        jobs = make_jobs(session, [mine, other], "0001000")
        worker = make_worker(session, deployment, slots=2)
        assert _told(session, jobs[4]) == (Blocker.SLOTS_FULL, "4 jobs go before it, 3 of them yours")
        claim(session, deployment, worker)
        claim(session, deployment, worker)
        assert _told(session, jobs[1]) == (Blocker.SLOTS_FULL, "all 2 slots are taken, and it is the next")
        assert _told(session, jobs[2])[1].endswith("1 job goes before it, your own")
        assert _told(session, jobs[-1])[1].endswith("4 jobs go before it, all of them yours")


def test_a_held_job_says_that_its_batch_is_paused(database: Database) -> None:
    with database.transaction() as session:
        make_deployment(session)
        held, free = make_jobs(session, [make_tenant(session)], "00")
        session.execute(update(Job).where(Job.id == held.id).values(held=True, batch_id="batch_x", batch_line=1))
        paused = standing(session, held)
        assert (paused.blocker, paused.words) == (Blocker.BATCH_PAUSED, "its batch batch_x is paused")
        assert (paused.position, paused.eta_unknown) == (None, EtaUnknown.HELD)
        assert standing(session, free).position == 1


def test_the_interval_comes_from_what_jobs_took_lately(database: Database) -> None:
    with database.transaction() as session:
        deployment = make_deployment(session)
        tenant = make_tenant(session)
        worker = make_worker(session, deployment, slots=1)
        first = submit_job(session, tenant)
        assert standing(session, first).eta_unknown is EtaUnknown.NOTHING_FINISHED
        make_jobs(session, [tenant], "0" * 11)
        for _ in range(12):
            run_one(session, deployment, worker, 30.0)
        behind = make_jobs(session, [tenant], "000")
        claim(session, deployment, worker)
        eta = standing(session, behind[2]).eta
    assert eta is not None
    assert eta.based_on == 12
    assert 70 < eta.seconds[0] < 90 < eta.seconds[1] < 130, "one runs, one waits before it, then 30 s of its own"
    assert (eta.latest - eta.earliest).total_seconds() == pytest.approx(eta.seconds[1] - eta.seconds[0])


def test_slots_that_other_models_take_are_not_counted(database: Database) -> None:
    with database.transaction() as session:
        deployment, other = make_deployment(session), make_deployment(session, "other")
        tenant = make_tenant(session)
        worker = make_worker(session, deployment, slots=1)
        session.add(Hosting(worker_id=worker.id, deployment_id=other.id, state="ready"))
        submit_job(session, tenant)
        run_one(session, deployment, worker, 5.0)
        submit_job(session, tenant, model="other")
        claim(session, other, worker)
        waiting = standing(session, submit_job(session, tenant))
    assert (waiting.blocker, waiting.eta_unknown) == (Blocker.SLOTS_FULL, EtaUnknown.NOT_SERVED)


def test_a_page_says_it_in_sentences(database: Database) -> None:
    with database.transaction() as session:
        deployment = make_deployment(session)
        tenant = make_tenant(session)
        worker = make_worker(session, deployment, slots=1)
        submit_job(session, tenant)
        run_one(session, deployment, worker, 5.0)
        told = standing(session, submit_job(session, tenant)).sentences
    assert told.startswith("A worker is about to take it. Its place is 1. Its answer should come in 2 to 1")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        ((0.6, 1.2), "in about 1 s"),
        ((-3.0, 20.0), "in 0 to 20 s"),
        ((100.0, 119.0), "in 100 to 119 s"),
        ((100.0, 125.0), "in about 2 min"),
        ((3600.0, 4 * 3600.0), "in 1 to 4 h"),
    ],
)
def test_seconds_as_a_person_would_say_them(seconds: tuple[float, float], words: str) -> None:
    assert between_words(*seconds) == words


def _told(session: Session, job: Job) -> tuple[Blocker, str]:
    found = standing(session, job)
    return found.blocker, found.words
