"""The journal in a real Redis: fenced, gapless, safe to repeat, restored from memory when Redis forgets."""

import pytest
from penstock.broker import LIVE_CHANNEL_PREFIX
from penstock.errors import LeaseLost
from penstock.jobs.journal import (
    Append,
    AppendResult,
    Journal,
    JournalEntry,
    Round,
    pack_entries,
    unpack_entries,
    unpack_live,
)
from redis import Redis

JOB = "job_1"


def entry(position: int, fence: int = 1) -> JournalEntry:
    return JournalEntry(0, position, 1000 + position, f"t{position}", -0.5, fence)


@pytest.fixture
def journal(redis: Redis) -> Journal:
    return Journal(redis, "tests")


def test_what_was_appended_is_read_from_any_position(journal: Journal) -> None:
    assert journal.open(JOB, 1).known is False
    assert journal.append([Append(JOB, 1, 0, [entry(0), entry(1)])]) == [AppendResult.DONE]
    assert journal.append([Append(JOB, 1, 2, [entry(2)])]) == [AppendResult.DONE]
    assert journal.read(JOB) == [entry(0), entry(1), entry(2)]
    assert journal.read(JOB, 2) == [entry(2)]
    assert journal.read(JOB, 3) == []


def test_the_next_holder_reads_all_and_shuts_the_last_one_out(journal: Journal) -> None:
    journal.open(JOB, 1)
    journal.append([Append(JOB, 1, 0, [entry(0)])])
    opened = journal.open(JOB, 2)
    assert opened.known
    assert opened.entries == [entry(0)]
    assert journal.append([Append(JOB, 1, 1, [entry(1)])]) == [AppendResult.FENCED]
    with pytest.raises(LeaseLost):
        journal.open(JOB, 1)
    with pytest.raises(LeaseLost):
        journal.rewrite(JOB, 1, [entry(9)])
    assert journal.append([Append(JOB, 2, 1, [entry(1, fence=2)])]) == [AppendResult.DONE]
    assert journal.read(JOB) == [entry(0), entry(1, fence=2)]


def test_a_repeated_append_changes_nothing(journal: Journal) -> None:
    journal.open(JOB, 1)
    step = [Append(JOB, 1, 0, [entry(0), entry(1)])]
    assert journal.append(step) == [AppendResult.DONE]
    assert journal.append(step) == [AppendResult.DONE]
    assert journal.read(JOB) == [entry(0), entry(1)]


def test_a_gap_is_refused(journal: Journal) -> None:
    journal.open(JOB, 1)
    assert journal.append([Append(JOB, 1, 5, [entry(5)])]) == [AppendResult.EMPTIED]
    assert journal.read(JOB) == []


def test_an_emptied_redis_is_told_and_rewritten_from_memory(journal: Journal, redis: Redis) -> None:
    journal.open(JOB, 1)
    journal.append([Append(JOB, 1, 0, [entry(0)])])
    redis.flushall()
    assert journal.append([Append(JOB, 1, 1, [entry(1)])]) == [AppendResult.EMPTIED]
    journal.rewrite(JOB, 1, [entry(0), entry(1)])
    assert journal.append([Append(JOB, 1, 2, [entry(2)])]) == [AppendResult.DONE]
    assert journal.read(JOB) == [entry(0), entry(1), entry(2)]


def test_one_call_journals_many_jobs_and_publishes_only_what_was_accepted(journal: Journal, redis: Redis) -> None:
    journal.open("job_a", 1)
    journal.open("job_b", 5)
    live = redis.pubsub(ignore_subscribe_messages=True)
    live.subscribe(LIVE_CHANNEL_PREFIX + "tests")
    live.get_message(timeout=1)
    results = journal.append([Append("job_a", 1, 0, [entry(0)]), Append("job_b", 4, 0, [entry(0)])])
    assert results == [AppendResult.DONE, AppendResult.FENCED]
    message = live.get_message(timeout=5)
    live.close()
    assert message is not None
    published = unpack_live(message["data"])
    assert [(append.job_id, append.first_position, append.entries) for append in published.appends] == [
        ("job_a", 0, [entry(0)])
    ]


def test_a_round_is_published_in_one_message(journal: Journal, redis: Redis) -> None:
    journal.open("job_a", 1)
    journal.open("job_b", 2)
    live = redis.pubsub(ignore_subscribe_messages=True)
    live.subscribe(LIVE_CHANNEL_PREFIX + "tests")
    live.get_message(timeout=1)
    appends = [Append("job_a", 1, 0, [entry(0)])]
    journal.write(Round(appends, closing=[("job_b", 2), ("job_a", 1)], linger_seconds=60, events=["job_b"]))
    message = live.get_message(timeout=30)
    assert message is not None
    published = unpack_live(message["data"])
    assert ([append.job_id for append in published.appends], published.events) == (["job_a"], ["job_b"])
    assert live.get_message() is None
    live.close()
    assert journal.read("job_a") == [entry(0)]
    assert 0 < redis.ttl("penstock:journal:{job_a}") <= 60


def test_a_redis_that_forgot_the_scripts_gets_them_again(journal: Journal, redis: Redis) -> None:
    journal.open(JOB, 1)
    redis.script_flush()
    assert journal.append([Append(JOB, 1, 0, [entry(0)])]) == [AppendResult.DONE]
    assert journal.read(JOB) == [entry(0)]


def test_a_closed_journal_goes_away_and_a_reopened_one_stays(journal: Journal, redis: Redis) -> None:
    journal.open(JOB, 1)
    journal.append([Append(JOB, 1, 0, [entry(0)])])
    journal.close(JOB, 1, 600)
    key = f"penstock:journal:{{{JOB}}}"
    assert 0 < redis.ttl(key) <= 600
    journal.open(JOB, 2)
    assert redis.ttl(key) == -1


def test_packing_loses_nothing() -> None:
    entries = [entry(0), JournalEntry(1, 0, None, "tail \N{SNOWMAN}", None, 3, "stop")]
    assert unpack_entries(pack_entries(entries)) == entries
