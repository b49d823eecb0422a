"""When a failed delivery is tried again."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from penstock.webhooks.retries import LONGEST_RETRY_AFTER, MOST_ATTEMPTS, RETRY_DELAYS, retry_delay


def test_the_schedule_is_that_of_standard_webhooks() -> None:
    assert [delay.total_seconds() for delay in RETRY_DELAYS] == [
        5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400,
    ]  # fmt: skip


@pytest.mark.parametrize("number", range(1, MOST_ATTEMPTS))
def test_each_delay_is_jittered_upwards(number: int) -> None:
    delays = {retry_delay(number, None) for _ in range(50)}
    base = RETRY_DELAYS[number - 1]
    assert all(delay is not None and base <= delay <= base * 1.1 for delay in delays)
    assert len(delays) > 1


def test_nothing_follows_the_last_attempt() -> None:
    assert retry_delay(MOST_ATTEMPTS, "5") is None


def test_retry_after_makes_it_longer() -> None:
    assert retry_delay(1, "600") == timedelta(seconds=600)


def test_retry_after_may_be_a_date() -> None:
    delay = retry_delay(1, format_datetime(datetime.now(UTC) + timedelta(minutes=10), usegmt=True))
    assert delay is not None
    assert timedelta(minutes=9, seconds=50) < delay <= timedelta(minutes=10)


@pytest.mark.parametrize("retry_after", ["0", "soon", "-7", "", "Thu, 01 Jan 1970 00:00:00 GMT", "٣٠٠"])
def test_retry_after_never_makes_it_shorter(retry_after: str) -> None:
    delay = retry_delay(2, retry_after)
    assert delay is not None
    assert RETRY_DELAYS[1] <= delay <= RETRY_DELAYS[1] * 1.1


@pytest.mark.parametrize("retry_after", ["86401", "9" * 8, "9" * 9000, "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_retry_after_is_bounded(retry_after: str) -> None:
    assert retry_delay(1, retry_after) == LONGEST_RETRY_AFTER
