"""Identifiers: a prefix that says what it names, then 26 characters that sort by time of creation."""

import os
import time
from datetime import datetime
from typing import Final

_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"


def new_id(prefix: str) -> str:
    """A fresh identifier such as `job_01k9...`: 48 bits of Unix milliseconds, then 80 random ones, in base 32."""
    return _spelled(prefix, time.time_ns() // 1_000_000, int.from_bytes(os.urandom(10)))


def first_id(prefix: str, moment: datetime) -> str:
    """What sorts before every identifier that was made since `moment`, and after all earlier ones."""
    return _spelled(prefix, int(moment.timestamp() * 1000), 0)


def _spelled(prefix: str, milliseconds: int, rest: int) -> str:
    value = milliseconds << 80 | rest
    return f"{prefix}_{''.join(_ALPHABET[(value >> shift) & 31] for shift in range(125, -1, -5))}"
