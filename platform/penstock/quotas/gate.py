"""Where requests, tokens and streams are held to their tenant's limits.

Fail-open: while Redis does not answer, rates and streams are not limited, because jobs are accepted without Redis and
must stay so; the limit on waiting jobs, which PostgreSQL holds, still bounds what a tenant can pile up. A Redis that
fell silent is asked again after `SILENCE_SECONDS`, so that it slows down one request in that time and not every one.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import Final, TypeVar
from uuid import uuid4

from redis.exceptions import RedisError

from penstock.auth.services import TenantLimits
from penstock.errors import QuotaExceeded, ValidationFailed
from penstock.jobs.crowding import Crowding
from penstock.jobs.intake import Limits
from penstock.logs import get_logger
from penstock.quotas.counters import LEASE_SECONDS, Counters
from penstock.quotas.fields import note
from penstock.quotas.policies import Policy, QuotaPolicies, Standing, policies_of
from penstock.settings import Settings

SILENCE_SECONDS: Final = 5.0
_RENEW_SECONDS: Final = LEASE_SECONDS / 3
_STREAM_RETRY_SECONDS: Final = 5
Batch = TypeVar("Batch")
log = get_logger(__name__)


class QuotaGate:
    """Lets a tenant's requests through, or raises `QuotaExceeded` saying when to come back."""

    def __init__(self, counters: Counters, settings: Settings) -> None:
        self._counters = counters
        self._settings = settings
        self._silent_until = 0.0
        self._crowding = Crowding()

    def close(self) -> None:
        """Let go of Redis."""
        self._counters.close()

    def policies(self, limits: TenantLimits) -> QuotaPolicies:
        """The limits in force for a tenant that has these of its own."""
        return policies_of(limits, self._settings)

    def job_limits(self, tenant_id: str, limits: TenantLimits) -> Limits:
        """What a submit of that tenant is held to."""
        most = self.policies(limits).max_queued_jobs
        return Limits(most, partial(self.admit_tokens, tenant_id, limits), self._crowding)

    def admit_request(self, tenant_id: str, limits: TenantLimits) -> None:
        """Count one request."""
        if policy := self.policies(limits).requests:
            self._spend(tenant_id, policy, 1)

    def admit_tokens(self, tenant_id: str, limits: TenantLimits, tokens: int) -> None:
        """Count the tokens that a job may use. Raises `ValidationFailed` when no minute has as many."""
        policy = self.policies(limits).tokens
        if policy is None:
            return
        if tokens > policy.quota:
            raise ValidationFailed(
                f"the job may use {tokens} tokens, and the tenant {policy.quota} in a minute: give a smaller "
                "max_tokens, n or budget",
                field="params.max_tokens",
                limit=policy.quota,
                tokens=tokens,
            )
        self._spend(tenant_id, policy, tokens)

    def standings(self, tenant_id: str, limits: TenantLimits) -> list[Standing]:
        """How the tenant's rates stand now; none of those that have no limit, and none while Redis is silent."""
        policies = self.policies(limits)
        rates = [policy for policy in (policies.requests, policies.tokens) if policy is not None]
        found = [self._ask(partial(self._counters.spend, tenant_id, policy, 0)) for policy in rates]
        return [standing for standing in found if standing is not None]

    def admit_stream(
        self, tenant_id: str, limits: TenantLimits, batches: Iterable[Batch]
    ) -> tuple[Iterable[Batch], Callable[[], None]]:
        """The stream's batches, kept counted as open while they are read, and what ends the count."""
        policy = self.policies(limits).streams
        if policy is None:
            return batches, _nothing
        place = uuid4().hex
        standing = self._ask(partial(self._counters.take_place, tenant_id, policy, place))
        if standing is not None and not standing.allowed:
            raise QuotaExceeded(
                f"{policy.quota} streams of this tenant are open, which is its limit; close one",
                limit=policy.quota,
                retry_after=_STREAM_RETRY_SECONDS,
                policy=policy.name,
            )
        if standing is not None:
            note(standing)
        return self._renewing(tenant_id, policy, place, batches), partial(self._leave, tenant_id, policy, place)

    def _spend(self, tenant_id: str, policy: Policy, cost: int) -> None:
        standing = self._ask(partial(self._counters.spend, tenant_id, policy, cost))
        if standing is None:
            return
        note(standing)
        if not standing.allowed:
            raise QuotaExceeded(
                f"the tenant may use {policy.quota} {policy.unit} in a minute; come back in {standing.reset} s",
                limit=policy.quota,
                retry_after=standing.reset,
                policy=policy.name,
            )

    def _renewing(self, tenant_id: str, policy: Policy, place: str, batches: Iterable[Batch]) -> Iterator[Batch]:
        renewed = time.monotonic()
        for batch in batches:
            if time.monotonic() - renewed >= _RENEW_SECONDS:
                # A place that Redis forgot is taken again if it is free; a stream that runs is never cut off.
                self._ask(partial(self._counters.take_place, tenant_id, policy, place))
                renewed = time.monotonic()
            yield batch

    def _leave(self, tenant_id: str, policy: Policy, place: str) -> None:
        with suppress(RedisError):  # then the place runs out by itself
            self._counters.leave_place(tenant_id, policy, place)

    def _ask(self, counters: Callable[[], Standing]) -> Standing | None:
        """What the counters say; None while Redis is silent."""
        if time.monotonic() < self._silent_until:
            return None
        try:
            return counters()
        except RedisError as error:
            self._silent_until = time.monotonic() + SILENCE_SECONDS
            log.warning("quota.not_counted", error=type(error).__name__, seconds=SILENCE_SECONDS)
            return None


def _nothing() -> None:
    """Nothing was counted."""
