"""What a submit writes, beyond what its HTTP tests see."""

from penstock.db import Database
from penstock.jobs.services import explain_waiting
from penstock.outbox.models import OutboxMessage
from sqlalchemy import select

from tests.factories import make_deployment, make_tenant, make_worker, submit_job


def test_a_drawn_seed_survives_every_json_reader(database: Database) -> None:
    with database.transaction() as session:
        make_deployment(session)
        tenant = make_tenant(session)
        seeds = [submit_job(session, tenant).seed for _ in range(20)]
    assert len(set(seeds)) == 20
    assert all(int(float(seed)) == seed for seed in seeds)


def test_a_submit_leaves_its_doorbell_in_the_same_transaction(database: Database) -> None:
    with database.transaction() as session:
        deployment = make_deployment(session)
        submit_job(session, make_tenant(session))
        message = session.scalars(select(OutboxMessage)).one()
        assert (message.topic, message.payload) == ("doorbell", {"deployment_id": deployment.id})


def test_a_waiting_job_says_what_holds_it_up(database: Database) -> None:
    with database.transaction() as session:
        deployment = make_deployment(session)
        tenant = make_tenant(session)
        first, second = submit_job(session, tenant), submit_job(session, tenant)
        assert explain_waiting(session, first).blocker == "no worker hosts version 1 of tiny"
        make_worker(session, deployment)
        assert explain_waiting(session, first).blocker == "a worker is about to take it"
        assert explain_waiting(session, second).ahead == 1
        assert explain_waiting(session, second).blocker == "1 job goes before it"
