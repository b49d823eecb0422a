"""Slowing down whoever guesses passwords: failures are counted in Redis by account and address together.

Counting both keeps a stranger from locking a person out of their account from elsewhere. While Redis does not answer
nobody is locked out.
"""

import hashlib
from typing import Final

from redis import Redis
from redis.exceptions import RedisError

from penstock.errors import QuotaExceeded
from penstock.logs import get_logger

MOST_FAILURES: Final = 10
WINDOW_SECONDS: Final = 900

log = get_logger(__name__)


class SignInThrottle:
    """At most `MOST_FAILURES` wrong passwords for one account from one address in `WINDOW_SECONDS`."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def check(self, email: str, address: str) -> None:
        """Raise `QuotaExceeded`, saying when to come back, after too many failures."""
        try:
            with self._redis.pipeline() as pipe:
                pipe.get(_key(email, address))
                pipe.ttl(_key(email, address))
                failures, seconds_left = pipe.execute()
        except RedisError as error:
            log.warning("sign_in.throttle_unavailable", error=type(error).__name__)
            return
        if failures is not None and int(failures) >= MOST_FAILURES:
            minutes = -(-max(int(seconds_left), 1) // 60)
            plural = "" if minutes == 1 else "s"
            raise QuotaExceeded(
                f"Too many attempts. Try again in {minutes} minute{plural}.", retry_after=int(seconds_left)
            )

    def failed(self, email: str, address: str) -> None:
        """Count one wrong password; the window begins with the first."""
        try:
            with self._redis.pipeline() as pipe:
                pipe.set(_key(email, address), 0, ex=WINDOW_SECONDS, nx=True)
                pipe.incr(_key(email, address))
                pipe.execute()
        except RedisError as error:
            log.warning("sign_in.throttle_unavailable", error=type(error).__name__)

    def succeeded(self, email: str, address: str) -> None:
        """Forget the failures."""
        try:
            self._redis.delete(_key(email, address))
        except RedisError as error:
            log.warning("sign_in.throttle_unavailable", error=type(error).__name__)


def _key(email: str, address: str) -> str:
    who = hashlib.sha256(f"{email.strip().lower()}\0{address}".encode()).hexdigest()[:32]
    return f"penstock:sign-in:{who}"
