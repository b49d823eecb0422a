"""The one thread through which a web process hears of jobs."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import cast

import pytest
from penstock.db import Database
from penstock.jobs.journal import Append, Journal, JournalEntry, LiveAppend
from penstock.jobs.live import _BACKLOG, LiveBroadcaster, Subscription
from penstock.jobs.models import Job
from penstock.jobs.state_watch import StateWatch
from penstock.registry.models import Deployment
from penstock.settings import Settings
from redis import Redis
from sqlalchemy import update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from tests.platform.api.conftest import Caller

PATIENCE = 30.0


def entry(text: str) -> JournalEntry:
    return JournalEntry(0, 0, 1, text, None, 1)


@pytest.fixture
def live(redis: Redis, database: Database) -> Iterator[LiveBroadcaster]:
    broadcaster = LiveBroadcaster(redis, database)
    yield broadcaster
    broadcaster.close()
    broadcaster.join()


@pytest.fixture
def journal(redis: Redis) -> Journal:
    journal = Journal(redis, publisher="test")
    for job_id in ("job_a", "job_b"):
        journal.open(job_id, 1)
    return journal


def until_connected(subscription: Subscription) -> None:
    assert subscription.take(PATIENCE).look_again


def test_each_reader_hears_of_its_job_alone(live: LiveBroadcaster, journal: Journal) -> None:
    with live.subscribed("job_first") as first:  # those that come later are woken by their own news alone
        until_connected(first)
        with live.subscribed("job_a") as one, live.subscribed("job_a") as two, live.subscribed("job_b") as other:
            journal.append([Append("job_b", 1, 0, [entry("b")]), Append("job_a", 1, 0, [entry("a")])])

            for subscription in (one, two):
                assert subscription.take(PATIENCE).appends == [LiveAppend("job_a", 0, [entry("a")])]
            assert other.take(PATIENCE).appends == [LiveAppend("job_b", 0, [entry("b")])]


def test_a_state_event_wakes_those_who_want_no_tokens(live: LiveBroadcaster, journal: Journal) -> None:
    with live.subscribed("job_a", tokens=False) as subscription:
        until_connected(subscription)
        journal.append([Append("job_a", 1, 0, [entry("a")])])
        journal.announce(["job_a"])

        news = subscription.take(PATIENCE)
        assert (news.look_again, news.appends) == (True, [])


def test_whoever_was_cut_off_from_redis_is_told_to_look_again(
    live: LiveBroadcaster, journal: Journal, redis: Redis
) -> None:
    with live.subscribed("job_a") as subscription:
        until_connected(subscription)
        redis.client_kill_filter(_type="pubsub")
        until_connected(subscription)
        journal.append([Append("job_a", 1, 0, [entry("a")])])

        assert subscription.take(PATIENCE).appends == [LiveAppend("job_a", 0, [entry("a")])]


def test_a_reader_that_falls_behind_keeps_no_backlog_and_looks_again() -> None:
    subscription = Subscription(tokens=True)
    for position in range(_BACKLOG + 1):
        subscription.offer(LiveAppend("job_a", position, [entry("x")]))

    news = subscription.take(0)
    assert (news.look_again, news.appends) == (True, [])


def test_a_message_that_nobody_understands_is_passed_over(
    live: LiveBroadcaster, journal: Journal, redis: Redis
) -> None:
    with live.subscribed("job_a") as subscription:
        until_connected(subscription)
        redis.publish("penstock:live:stranger", b"nonsense")
        journal.announce(["job_a"])

        assert subscription.take(PATIENCE).look_again


def test_closing_wakes_every_reader_for_the_last_time(live: LiveBroadcaster) -> None:
    with live.subscribed("job_a") as subscription:
        until_connected(subscription)
        live.close()

        assert subscription.take(PATIENCE).look_again
        assert live.closed


def test_a_look_finds_the_jobs_that_moved(database: Database, caller: Caller, deployment: Deployment) -> None:
    moved, still = caller.submit(), caller.submit()
    watch = StateWatch(database)
    assert set(watch.look([moved, still])) == {moved, still}
    assert watch.look([moved, still]) == []
    with database.transaction() as session:
        session.execute(update(Job).where(Job.id == moved).values(last_event=Job.last_event + 1))
    assert watch.look([moved, still, "job_of_nobody"]) == [moved]


def test_states_are_watched_again_after_an_outage(
    redis: Redis, caller: Caller, deployment: Deployment, settings: Settings
) -> None:
    job_id = caller.submit()
    broken = Database(settings)
    outages = iter([OperationalError("", {}, Exception("gone"))] * 2)
    begin = broken.transaction

    def fail_twice() -> AbstractContextManager[Session]:
        for outage in outages:
            raise outage
        return begin()

    live = LiveBroadcaster(redis, cast(Database, SimpleNamespace(transaction=fail_twice)))
    with live.subscribed(job_id, tokens=False) as subscription:
        until_connected(subscription)
        assert subscription.take(PATIENCE).look_again
    live.close()
    live.join()
    broken.close()
