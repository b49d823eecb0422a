"""The one thread through which a web process hears of jobs."""

from collections.abc import Iterator

import pytest
from penstock.jobs.journal import Append, Journal, JournalEntry, LiveAppend
from penstock.jobs.live import _BACKLOG, LiveBroadcaster, Subscription
from redis import Redis

PATIENCE = 30.0


def entry(text: str) -> JournalEntry:
    return JournalEntry(0, 0, 1, text, None, 1)


@pytest.fixture
def live(redis: Redis) -> Iterator[LiveBroadcaster]:
    broadcaster = LiveBroadcaster(redis)
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
    with live.subscribed("job_a") as one, live.subscribed("job_a") as two, live.subscribed("job_b") as other:
        for subscription in (one, two, other):
            until_connected(subscription)
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
