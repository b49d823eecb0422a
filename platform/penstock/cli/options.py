"""Options and parameter types that several commands share."""

import functools
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import click

from penstock.client import Client
from penstock.clock import utc_now

_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_DURATION: Final = re.compile(r"([0-9]{1,9})([smhd])")


def with_client(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give the command `--url` and `--api-key`, and call it with an open `client` in their place."""

    @click.option("--url", help="The server's address.  [default: PENSTOCK_URL, else http://127.0.0.1:8080]")
    @click.option("--api-key", help="The API key.  [default: PENSTOCK_API_KEY]")
    @functools.wraps(command)
    def wrapped(url: str | None, api_key: str | None, **parameters: Any) -> Any:
        # A person waits: few retries for single requests; streams and waiting have a patience of their own.
        with Client(url, api_key, max_retries=2) as client:
            return command(client=client, **parameters)

    return wrapped


def moment(text: str) -> datetime:
    """A point in time, in UTC: RFC 3339 with its zone, or a duration from now such as `45s`, `30m`, `12h` or `90d`."""
    return _moment(text, 1)


def past_moment(text: str) -> datetime:
    """The same, durations counting backwards from now."""
    return _moment(text, -1)


def _moment(text: str, direction: int) -> datetime:
    duration = _DURATION.fullmatch(text)
    try:
        if duration is not None:
            return utc_now() + direction * timedelta(**{_UNITS[duration[2]]: int(duration[1])})
        given = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{text!r} is neither a time such as 2030-01-31T12:00:00Z nor a duration such as 90d"
        ) from None
    if given.tzinfo is None:
        raise click.BadParameter(f"{text!r} has no time zone; put a Z behind it for UTC")
    return given.astimezone(UTC)


def assignment(text: str) -> tuple[str, str]:
    """`name=value` as name and value."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.BadParameter(f"{text!r} must read name=value")
    return name, value


def json_assignment(text: str) -> tuple[str, Any]:
    """`name=value`, the value being JSON where it reads as such, and text elsewhere."""
    name, value = assignment(text)
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
