"""Time as processes see it. Leases and deadlines are judged by the database's clock alone, never by this one."""

from datetime import UTC, datetime
from typing import Final

_UNITS: Final = (("s", 1), ("min", 60), ("h", 3600))


def utc_now() -> datetime:
    """The present moment, aware, in UTC."""
    return datetime.now(UTC)


def aware(moment: datetime) -> datetime:
    """The same moment in UTC. Raises `ValueError`, saying what would be right, without a zone or a year of UTC."""
    if moment.tzinfo is None:
        raise ValueError("must carry a time zone, as in 2030-01-31T12:00:00Z")
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("must lie between the years 1 and 9999, as in 2030-01-31T12:00:00Z") from None


def iso(moment: datetime | None) -> str | None:
    """RFC 3339 in UTC with milliseconds and a `Z`, or None."""
    if moment is None:
        return None
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def between_words(earliest: float, latest: float) -> str:
    """Two numbers of seconds from now as a person would say them: `in 20 to 50 s`, `in about 3 min`."""
    unit, length = next(each for each in _UNITS if latest < 120 * each[1] or each is _UNITS[-1])
    low, high = round(max(earliest, 0) / length), max(round(latest / length), 1)
    return f"in {low} to {high} {unit}" if low < high else f"in about {high} {unit}"
