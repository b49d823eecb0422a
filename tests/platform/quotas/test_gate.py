"""The gate: which limits are in force, and what it does while Redis is silent."""

import socket
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from penstock.auth.services import TenantLimits
from penstock.broker import make_redis
from penstock.errors import QuotaExceeded
from penstock.quotas.counters import Counters
from penstock.quotas.gate import SILENCE_SECONDS, QuotaGate
from penstock.quotas.policies import Policy, policies_of
from penstock.settings import Settings
from pydantic import SecretStr
from redis import Redis

ONE = TenantLimits(requests_per_minute=1, tokens_per_minute=1, max_open_streams=1)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The gate's clock, stopped at `now`."""
    stopped = SimpleNamespace(now=1000.0)
    monkeypatch.setattr("penstock.quotas.gate.time", SimpleNamespace(monotonic=lambda: stopped.now))
    return stopped


@pytest.fixture
def gate(settings: Settings, redis: Redis) -> QuotaGate:
    return QuotaGate(Counters(redis), settings)


@pytest.fixture
def silent(settings: Settings) -> Iterator[QuotaGate]:
    """A gate whose Redis refuses connections."""
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    elsewhere = settings.model_copy(update={"redis_url": SecretStr(f"redis://127.0.0.1:{port}/0")})
    gate = QuotaGate(Counters(make_redis(elsewhere, retries=0, timeout=0.5)), settings)
    yield gate
    gate.close()


def test_a_tenants_own_limits_go_before_the_installations(settings: Settings) -> None:
    installation = settings.model_copy(
        update={"requests_per_minute": 100, "tokens_per_minute": None, "max_open_streams": 7, "max_queued_jobs": 9}
    )
    found = policies_of(TenantLimits(max_queued_jobs=3, requests_per_minute=200), installation)
    assert found.requests == Policy("requests", 200, 60)
    assert found.tokens is None
    assert found.streams == Policy("streams", 7, None)
    assert found.max_queued_jobs == 3
    assert policies_of(TenantLimits(), installation).max_queued_jobs == 9


def test_without_limits_redis_is_not_asked(silent: QuotaGate, clock: SimpleNamespace) -> None:
    none = TenantLimits()
    silent.admit_request("ten_1", none)
    silent.admit_tokens("ten_1", none, 10**9)
    batches, leave = silent.admit_stream("ten_1", none, [1, 2])
    assert list(batches) == [1, 2]
    leave()
    assert silent._silent_until == 0.0


def test_while_redis_is_silent_everything_gets_through(silent: QuotaGate) -> None:
    for _ in range(3):
        silent.admit_request("ten_1", ONE)
        silent.admit_tokens("ten_1", ONE, 1)
        batches, leave = silent.admit_stream("ten_1", ONE, [1])
        assert list(batches) == [1]
        leave()
    assert silent.standings("ten_1", ONE) == []
    assert silent.job_limits("ten_1", TenantLimits(max_queued_jobs=5)).max_queued_jobs == 5


def test_a_redis_that_fell_silent_is_left_alone_for_a_while_and_then_asked_again(
    silent: QuotaGate, redis: Redis, clock: SimpleNamespace
) -> None:
    silent.admit_request("ten_1", ONE)
    silent._counters = Counters(redis)  # it is back
    clock.now += SILENCE_SECONDS - 0.1
    for _ in range(3):
        silent.admit_request("ten_1", ONE)
    assert redis.keys() == []
    clock.now += 0.2
    silent.admit_request("ten_1", ONE)
    with pytest.raises(QuotaExceeded):
        silent.admit_request("ten_1", ONE)


def test_a_stream_keeps_its_place_while_it_is_read(gate: QuotaGate, redis: Redis, clock: SimpleNamespace) -> None:
    batches, leave = gate.admit_stream("ten_1", ONE, iter(range(10)))
    reading = iter(batches)
    key = "penstock:quota:ten_1:streams"
    ((place, until),) = redis.zrange(key, 0, -1, withscores=True)
    redis.zadd(key, {place: until - 30_000})  # half a minute has passed
    next(reading)
    assert redis.zscore(key, place) == until - 30_000
    clock.now += 21
    next(reading)
    assert redis.zscore(key, place) >= until
    with pytest.raises(QuotaExceeded, match="1 streams of this tenant are open"):
        gate.admit_stream("ten_1", ONE, [])
    leave()
    gate.admit_stream("ten_1", ONE, [])
