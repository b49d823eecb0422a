"""What a submit writes, beyond what its HTTP tests see."""

from penstock.db import Database
from penstock.outbox.models import OutboxMessage
from sqlalchemy import select

from tests.factories import make_deployment, make_tenant, submit_job


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
        assert (message.topic, message.payload) == ("doorbell", {"deployment_id": deployment.id, "jobs": 1})
