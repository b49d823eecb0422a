"""How long to wait before trying again."""

import random
from email.utils import parsedate_to_datetime
from typing import Final

import httpx

from penstock.clock import utc_now

FIRST_SECONDS: Final = 0.25
LONGEST_SECONDS: Final = 8.0
LONGEST_ASKED_SECONDS: Final = 60.0


def pause(failures: int) -> float:
    """Seconds after so many failures in a row (from 1): doubling up to eight, each anywhere in its upper half."""
    seconds = min(FIRST_SECONDS * 2.0 ** min(failures - 1, 16), LONGEST_SECONDS)
    return seconds * random.uniform(0.5, 1.0)


def asked_pause(response: httpx.Response) -> float | None:
    """What the response's `Retry-After` asks for, in seconds, or None without a readable one."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max((parsedate_to_datetime(value) - utc_now()).total_seconds(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return None
