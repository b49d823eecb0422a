"""Identifiers: a prefix that says what it names, then 26 characters that sort by time of creation."""

import os
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Final

_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"


def new_id(prefix: str) -> str:
    """A fresh identifier such as `job_01k9...`: 48 bits of Unix milliseconds, then 80 random ones, in base 32."""
    return _spelled(prefix, _fresh())


def ascending_ids(prefix: str) -> Iterator[str]:
    """Fresh identifiers without end, each sorting after the one before it, within a millisecond too."""
    last = 0
    while True:
        last = max(_fresh(), last + 1 + int.from_bytes(os.urandom(5)))
        yield _spelled(prefix, last)


def first_id(prefix: str, moment: datetime) -> str:
    """What sorts before every identifier that was made since `moment`, and after all earlier ones."""
    return _spelled(prefix, int(moment.timestamp() * 1000) << 80)


def _fresh() -> int:
    return time.time_ns() // 1_000_000 << 80 | int.from_bytes(os.urandom(10))


def _spelled(prefix: str, value: int) -> str:
    return f"{prefix}_{''.join(_ALPHABET[(value >> shift) & 31] for shift in range(125, -1, -5))}"
