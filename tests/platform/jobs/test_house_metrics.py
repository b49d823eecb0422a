"""What keeping house counts is what it did."""

from celery import Celery
from penstock.db import Database
from penstock.jobs import lease
from penstock.jobs.housekeeping import Housekeeper
from penstock.metrics import ControlMetrics
from penstock.settings import Settings
from redis import Redis
from sqlalchemy import text

from tests.factories import make_deployment, make_tenant, make_worker, submit_job


def test_lost_leases_and_passed_on_messages_are_counted(
    database: Database, redis: Redis, celery_app: Celery, settings: Settings
) -> None:
    metrics = ControlMetrics()
    keeper = Housekeeper(database, redis, celery_app, settings.model_copy(update={"lease_seconds": 0.5}), metrics.house)
    with database.transaction() as session:
        deployment = make_deployment(session)
        worker = make_worker(session, deployment)
        submit_job(session, make_tenant(session))
        submit_job(session, make_tenant(session))
        lease.claim(session, worker_id=worker.id, deployment_id=deployment.id, lease_seconds=30)
        session.execute(text("UPDATE job SET lease_expires_at = now() - interval '1 s' WHERE state = 'running'"))
    for _ in range(2):  # two submits, and the doorbell of the job that is taken back; nothing is left for later
        keeper.sweep()
        passed_on = metrics.registry.get_sample_value("penstock_outbox_passed_on_total")
        assert (metrics.registry.get_sample_value("penstock_leases_expired_total"), passed_on) == (1, 3)
