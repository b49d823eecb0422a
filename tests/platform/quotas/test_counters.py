"""The counters in Redis: what a bucket gives, when it is full again, and how many places there are."""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from penstock.quotas.counters import LEASE_SECONDS, Counters
from penstock.quotas.policies import Policy
from redis import Redis

SIX = Policy("requests", 6, 60)  # a unit in ten seconds
TWO_AT_ONCE = Policy("streams", 2, None)
RATE_KEY = "penstock:quota:ten_1:requests"
PLACES_KEY = "penstock:quota:ten_1:streams"


@pytest.fixture
def counters(redis: Redis) -> Counters:
    return Counters(redis)


def let_pass(redis: Redis, seconds: float) -> None:
    """Move the bucket as if so many seconds had passed."""
    full_at = float(redis.get(RATE_KEY) or 0)
    redis.set(RATE_KEY, f"{full_at - seconds * 1000:.3f}")


def test_a_bucket_gives_its_quota_and_then_says_when_to_come_back(counters: Counters) -> None:
    standings = [counters.spend("ten_1", SIX, 1) for _ in range(6)]
    assert [(standing.allowed, standing.remaining) for standing in standings] == [(True, n) for n in (5, 4, 3, 2, 1, 0)]
    assert [standing.reset for standing in standings] == [10, 20, 30, 40, 50, 60]
    refused = counters.spend("ten_1", SIX, 1)
    assert (refused.allowed, refused.remaining, refused.reset) == (False, 0, 10)


def test_a_refusal_takes_nothing_and_a_question_neither(counters: Counters) -> None:
    counters.spend("ten_1", SIX, 4)
    for _ in range(3):
        refused = counters.spend("ten_1", SIX, 3)
        assert (refused.allowed, refused.remaining, refused.reset) == (False, 2, 10)
        asked = counters.spend("ten_1", SIX, 0)
        assert (asked.allowed, asked.remaining, asked.reset) == (True, 2, 40)
    assert counters.spend("ten_1", SIX, 2).remaining == 0


def test_a_bucket_fills_evenly_and_no_further_than_full(counters: Counters, redis: Redis) -> None:
    counters.spend("ten_1", SIX, 6)
    let_pass(redis, 20)
    assert counters.spend("ten_1", SIX, 0).remaining == 2
    assert [counters.spend("ten_1", SIX, 1).allowed for _ in range(3)] == [True, True, False]
    let_pass(redis, 3600)
    assert counters.spend("ten_1", SIX, 0).remaining == 6


def test_a_full_bucket_leaves_nothing_in_redis(counters: Counters, redis: Redis) -> None:
    counters.spend("ten_1", SIX, 0)
    assert redis.keys() == []
    counters.spend("ten_1", SIX, 3)
    assert 25_000 < redis.pttl(RATE_KEY) <= 30_000


def test_large_quotas_lose_no_units(counters: Counters) -> None:
    large = Policy("tokens", 2**31 - 1, 60)
    first = counters.spend("ten_1", large, 2**31 - 1)
    assert (first.allowed, first.reset) == (True, 60)
    assert not counters.spend("ten_1", large, 2**30).allowed


def test_tenants_have_buckets_of_their_own(counters: Counters) -> None:
    counters.spend("ten_1", SIX, 6)
    assert counters.spend("ten_2", SIX, 6).allowed


def test_of_many_at_once_no_more_than_the_quota_get_through(counters: Counters) -> None:
    with ThreadPoolExecutor(16) as pool:
        standings = list(pool.map(lambda _: counters.spend("ten_1", SIX, 1), range(64)))
    assert sum(standing.allowed for standing in standings) == 6
    remaining = sorted((standing.remaining for standing in standings if standing.allowed), reverse=True)
    assert all(before - after == 1 for before, after in pairwise(remaining))


def test_places_are_taken_kept_and_given_back(counters: Counters) -> None:
    assert [counters.take_place("ten_1", TWO_AT_ONCE, place).allowed for place in "abc"] == [True, True, False]
    assert counters.take_place("ten_1", TWO_AT_ONCE, "a").allowed
    counters.leave_place("ten_1", TWO_AT_ONCE, "a")
    assert counters.take_place("ten_1", TWO_AT_ONCE, "c").remaining == 0
    assert not counters.take_place("ten_1", TWO_AT_ONCE, "a").allowed
    assert counters.take_place("ten_2", TWO_AT_ONCE, "a").allowed


def test_a_place_that_nobody_renews_runs_out(counters: Counters, redis: Redis) -> None:
    for place in "ab":
        counters.take_place("ten_1", TWO_AT_ONCE, place)
    assert 0 < redis.pttl(PLACES_KEY) <= LEASE_SECONDS * 1000
    redis.zincrby(PLACES_KEY, -LEASE_SECONDS * 1000, "a")
    assert counters.take_place("ten_1", TWO_AT_ONCE, "c").allowed
    assert sorted(redis.zrange(PLACES_KEY, 0, -1)) == [b"b", b"c"]


def test_of_many_streams_at_once_no_more_than_the_quota_get_a_place(counters: Counters) -> None:
    with ThreadPoolExecutor(16) as pool:
        standings = list(pool.map(lambda n: counters.take_place("ten_1", TWO_AT_ONCE, str(n)), range(32)))
    assert sum(standing.allowed for standing in standings) == 2
