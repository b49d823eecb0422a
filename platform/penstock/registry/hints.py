"""MLflow's webhooks, which say that the registry has changed: a hint to look at once, and nothing else.

    MLflow ── signed POST ──> web ── a list in Redis ──> the control process that waits on it ──> reads the registry

MLflow delivers from memory, in no order, and gives up after three attempts; so nothing of what a hint says is believed,
and whoever waits looks after a while without one. Source: https://mlflow.org/docs/latest/ml/webhooks/
"""

import base64
import hashlib
import hmac
import threading
import time
from collections.abc import Mapping
from typing import Final

from redis import Redis
from redis.exceptions import RedisError

from penstock.errors import Unauthenticated
from penstock.logs import get_logger

PATH: Final = "/hooks/registry"
EVENTS: Final = (
    ("REGISTERED_MODEL", "CREATED"),
    ("MODEL_VERSION", "CREATED"),
    ("MODEL_VERSION_TAG", "SET"),
    ("MODEL_VERSION_ALIAS", "CREATED"),
    ("MODEL_VERSION_ALIAS", "DELETED"),
)
"""What MLflow is to tell of: (entity, action)."""

TOLERANCE_SECONDS: Final = 300.0
"""How far a hint's time may be from ours."""

_DELIVERY: Final = "X-Mlflow-Delivery-Id"  # in the case that WSGI makes of every header's name
_TIMESTAMP: Final = "X-Mlflow-Timestamp"
_SIGNATURE: Final = "X-Mlflow-Signature"
_KEY: Final = "penstock:registry:changed"
_SLICE_SECONDS: Final = 1.0  # and so how long whoever waits takes at most to see that it is to stop
_KEPT_SECONDS: Final = 60
log = get_logger(__name__)


def verify(secret: str, headers: Mapping[str, str], body: bytes, *, now: float) -> None:
    """Raise `Unauthenticated` unless MLflow signed this body with `secret`, and not long ago.

    The signature is `v1,` and the base64 of HMAC-SHA256 over `<delivery id>.<timestamp>.<body>`. `now` is in Unix
    seconds. The same hint again does no harm.
    """
    delivery, timestamp = headers.get(_DELIVERY, ""), headers.get(_TIMESTAMP, "")
    signed = b".".join((delivery.encode(), timestamp.encode(), body))
    expected = f"v1,{base64.b64encode(hmac.digest(secret.encode(), signed, hashlib.sha256)).decode()}"
    if not hmac.compare_digest(expected.encode(), headers.get(_SIGNATURE, "").encode()):
        raise Unauthenticated("X-MLflow-Signature: must be this body's, by the secret that the webhook was given")
    if not timestamp.isdecimal() or abs(now - int(timestamp)) > TOLERANCE_SECONDS:
        raise Unauthenticated(f"X-MLflow-Timestamp: must be within {TOLERANCE_SECONDS:.0f} s of now")


class Hints:
    """The list in Redis: many hints before somebody looks are one."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def give(self) -> None:
        """Have whoever waits look at once. Raises `RedisError`."""
        with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.lpush(_KEY, b"1")
            pipeline.ltrim(_KEY, 0, 0)
            pipeline.expire(_KEY, _KEPT_SECONDS)
            pipeline.execute()

    def wait(self, seconds: float, stop: threading.Event) -> None:
        """Return at the next hint, or after `seconds`, or when `stop` is set. Of several who wait one gets a hint."""
        until = time.monotonic() + seconds
        while not stop.is_set() and (left := until - time.monotonic()) > 0:
            try:
                if self._redis.blpop([_KEY], timeout=min(left, _SLICE_SECONDS)) is not None:
                    return
            except RedisError as error:
                log.warning("registry.no_hints", error=type(error).__name__)
                stop.wait(until - time.monotonic())
