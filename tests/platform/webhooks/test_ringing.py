"""Ringing for deliveries that are due: again and again, but never so often that the queue grows without end."""

from celery import Celery
from penstock.broker import CONTROL_QUEUE
from penstock.db import Database
from penstock.jobs import services as jobs
from penstock.jobs.housekeeping import Housekeeper
from penstock.settings import Settings
from redis import Redis

from tests.factories import make_deployment, make_tenant, submit_job


def test_what_nobody_attempts_is_rung_for_again_within_a_limit(
    database: Database, redis: Redis, celery_app: Celery, settings: Settings
) -> None:
    with database.transaction() as session:
        tenant = make_tenant(session)
        make_deployment(session)
        for _ in range(30):
            jobs.cancel(session, tenant.id, submit_job(session, tenant, webhook={"url": "http://127.0.0.1:9/"}).id)
    housekeeper = Housekeeper(database, redis, celery_app, settings)
    housekeeper.sweep()
    redis.delete(CONTROL_QUEUE)  # the doorbells are lost
    housekeeper.sweep()
    assert redis.llen(CONTROL_QUEUE) == 30
    for _ in range(20):
        housekeeper.sweep()
    assert redis.llen(CONTROL_QUEUE) <= 230
