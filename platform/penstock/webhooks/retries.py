"""When a delivery is tried again: the schedule of Standard Webhooks, as a function of what came of the last try."""

import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Final

RETRY_DELAYS: Final = (
    timedelta(seconds=5),
    timedelta(minutes=5),
    timedelta(minutes=30),
    timedelta(hours=2),
    timedelta(hours=5),
    timedelta(hours=10),
    timedelta(hours=14),
    timedelta(hours=20),
    timedelta(hours=24),
)
"""What is waited after the first, the second, ... failed attempt; the attempt after the last of them is the last."""

MOST_ATTEMPTS: Final = len(RETRY_DELAYS) + 1
LONGEST_RETRY_AFTER: Final = timedelta(hours=24)
_JITTER: Final = 0.1
GONE: Final = 410


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one try: a `status`, or an `error`. `refused` means that no later try can go better."""

    milliseconds: int
    status: int | None = None
    body: str | None = None
    retry_after: str | None = None
    error: str | None = None
    refused: bool = False

    @property
    def delivered(self) -> bool:
        return self.status is not None and 200 <= self.status < 300

    @property
    def hopeless(self) -> bool:
        """The address is refused, or its owner said that it is gone for good."""
        return self.refused or self.status == GONE


def retry_delay(number: int, retry_after: str | None) -> timedelta | None:
    """How long to wait after the failed attempt `number`, or None after the last.

    The receiver's `Retry-After` (seconds or a date) makes it longer, never shorter, and by no more than a day.
    """
    if number >= MOST_ATTEMPTS:
        return None
    jittered = RETRY_DELAYS[number - 1] * random.uniform(1.0, 1.0 + _JITTER)
    return max(jittered, min(_parse_retry_after(retry_after), LONGEST_RETRY_AFTER))


def _parse_retry_after(value: str | None) -> timedelta:
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return timedelta(seconds=int(text)) if len(text) < 9 else LONGEST_RETRY_AFTER
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return timedelta()
    return moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)
