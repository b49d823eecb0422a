"""Which limits are in force for a tenant: its own, or else the installation's."""

from dataclasses import dataclass
from typing import Final

from penstock.auth.services import TenantLimits
from penstock.settings import Settings

WINDOW_SECONDS: Final = 60
REQUESTS: Final = "requests"
TOKENS: Final = "tokens"
STREAMS: Final = "streams"
_UNITS: Final = {REQUESTS: "requests", TOKENS: "tokens", STREAMS: "concurrent-requests"}


@dataclass(frozen=True, slots=True)
class Policy:
    """One limit: so many units within a window of seconds, or at once where there is no window."""

    name: str
    quota: int
    window: int | None

    @property
    def unit(self) -> str:
        return _UNITS[self.name]


@dataclass(frozen=True, slots=True)
class Standing:
    """How a policy stands after a request.

    `remaining` units may be used now; in `reset` seconds there are as many as ever, or, after a refusal, enough.
    """

    policy: Policy
    allowed: bool
    remaining: int
    reset: int


@dataclass(frozen=True, slots=True)
class QuotaPolicies:
    """A tenant's limits in force; None is none."""

    requests: Policy | None
    tokens: Policy | None
    streams: Policy | None
    max_queued_jobs: int


def policies_of(limits: TenantLimits, settings: Settings) -> QuotaPolicies:
    """The tenant's own limits where it has some, the installation's elsewhere."""
    return QuotaPolicies(
        requests=_policy(REQUESTS, limits.requests_per_minute or settings.requests_per_minute, WINDOW_SECONDS),
        tokens=_policy(TOKENS, limits.tokens_per_minute or settings.tokens_per_minute, WINDOW_SECONDS),
        streams=_policy(STREAMS, limits.max_open_streams or settings.max_open_streams, None),
        max_queued_jobs=limits.max_queued_jobs or settings.max_queued_jobs,
    )


def _policy(name: str, quota: int | None, window: int | None) -> Policy | None:
    return Policy(name, quota, window) if quota is not None else None
