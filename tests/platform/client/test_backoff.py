"""How long the client waits."""

from datetime import timedelta
from email.utils import format_datetime

import httpx
import pytest
from penstock.client.backoff import FIRST_SECONDS, LONGEST_SECONDS, asked_pause, pause
from penstock.clock import utc_now


@pytest.mark.parametrize("failures", range(1, 40))
def test_pauses_double_up_to_a_limit_and_differ(failures: int) -> None:
    longest = min(FIRST_SECONDS * 2 ** (failures - 1), LONGEST_SECONDS)
    pauses = [pause(failures) for _ in range(100)]
    assert all(longest / 2 <= seconds <= longest for seconds in pauses)
    assert len(set(pauses)) > 1


@pytest.mark.parametrize(("header", "expected"), [("3", 3.0), (" 0 ", 0.0), ("", None), ("soon", None), ("-1", None)])
def test_retry_after_in_seconds(header: str, expected: float | None) -> None:
    assert asked_pause(httpx.Response(429, headers={"Retry-After": header})) == expected


def test_retry_after_as_a_date() -> None:
    later = format_datetime(utc_now() + timedelta(seconds=30), usegmt=True)
    seconds = asked_pause(httpx.Response(429, headers={"Retry-After": later}))
    assert seconds is not None
    assert 25 < seconds <= 30
