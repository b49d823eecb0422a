"""The counters of limits in Redis, shared by all web processes; each is judged and moved by one Lua script.

Rates are a token bucket kept as one moment (the generic cell rate algorithm, ITU-T I.371): the moment at which the
bucket would be full again. A bucket holds the quota of one window and fills evenly, so that after a pause a whole
window's quota can be used at once, and never more than twice the quota within one window. Open streams are a sorted
set of leases that run out by themselves, so that a process that dies gives back its places within a minute.

Only Redis's clock counts, so processes on machines whose clocks differ agree.
"""

import math
from typing import Final

from redis import Redis

from penstock.quotas.policies import REQUESTS, STREAMS, TOKENS, Policy, Standing

LEASE_SECONDS: Final = 60.0
"""How long an open stream counts without being renewed."""

_RATE: Final = """
local seconds, micros = unpack(redis.call('TIME'))
local now = seconds * 1000 + micros / 1000
local quota, window, cost = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local full_at = math.max(tonumber(redis.call('GET', KEYS[1]) or '0'), now)
local each = window / quota
local after = full_at + cost * each
local too_much = after - window - now
if too_much > 0.001 then
    return {0, math.floor((window - (full_at - now)) / each + 0.001), math.ceil(too_much)}
end
if cost > 0 then
    redis.call('SET', KEYS[1], string.format('%.3f', after), 'PX', math.ceil(after - now))
end
return {1, math.floor((window - (after - now)) / each + 0.001), math.ceil(after - now)}
"""

_OPEN: Final = """
local seconds, micros = unpack(redis.call('TIME'))
local now = seconds * 1000 + micros / 1000
local quota, lease, member = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local others = redis.call('ZCARD', KEYS[1])
if redis.call('ZSCORE', KEYS[1], member) then others = others - 1 end
if others >= quota then return {0, 0} end
redis.call('ZADD', KEYS[1], now + lease, member)
redis.call('PEXPIRE', KEYS[1], lease)
return {1, quota - others - 1}
"""


class Counters:
    """The counters of every tenant. Raises what redis-py raises when Redis does not answer."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._rate = redis.register_script(_RATE)
        self._open = redis.register_script(_OPEN)

    def close(self) -> None:
        """Close every connection."""
        self._redis.close()

    def spend(self, tenant_id: str, policy: Policy, cost: int) -> Standing:
        """Take `cost` units from the policy's bucket if it holds as many, else nothing; 0 asks how it stands.

        More than the policy's quota can never be had: the caller refuses that before.
        """
        assert policy.window is not None, f"{policy.name} is no rate"
        allowed, remaining, milliseconds = self._rate(
            keys=[_key(tenant_id, policy)], args=[policy.quota, policy.window * 1000, cost]
        )
        return Standing(policy, bool(allowed), int(remaining), math.ceil(int(milliseconds) / 1000))

    def take_place(self, tenant_id: str, policy: Policy, place: str) -> Standing:
        """Hold `place` for another minute if it has been held, or if fewer than the quota are."""
        allowed, remaining = self._open(
            keys=[_key(tenant_id, policy)], args=[policy.quota, int(LEASE_SECONDS * 1000), place]
        )
        return Standing(policy, bool(allowed), int(remaining), 0)

    def leave_place(self, tenant_id: str, policy: Policy, place: str) -> None:
        """Give the place back."""
        self._redis.zrem(_key(tenant_id, policy), place)

    def forget(self, tenant_id: str) -> None:
        """Delete all of a tenant's counters."""
        self._redis.delete(*(_name(tenant_id, policy) for policy in (REQUESTS, TOKENS, STREAMS)))


def _key(tenant_id: str, policy: Policy) -> str:
    return _name(tenant_id, policy.name)


def _name(tenant_id: str, policy: str) -> str:
    return f"penstock:quota:{tenant_id}:{policy}"
