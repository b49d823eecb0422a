"""A guardrail's figures as a small bar: an interval beside its margin, or a value beside its limit."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_AGREEMENT: Final = "same_top"
_MOST_MARGINS: Final = 4.0
"""An interval is cut off so many margins from nothing, so that a wide one leaves its margin to be seen."""
_SPARE: Final = 0.08


@dataclass(frozen=True, slots=True)
class Bar:
    """Where things lie, from 0 to 100. `zero` is "as the champion", which an interval has."""

    start: float
    end: float
    mark: float
    zero: float | None


def bar(name: str, figures: Mapping[str, float]) -> Bar | None:
    """The bar of these figures; none where a reason has no figures to draw."""
    if "low" in figures and "margin" in figures:
        return _interval(figures["low"], figures["high"], figures["margin"])
    if "limit" in figures:
        value, limit = figures["value"], figures["limit"]
        return _value(1 - value, 1 - limit) if name == _AGREEMENT else _value(value, limit)
    return None


def _interval(low: float, high: float, margin: float) -> Bar:
    most = _MOST_MARGINS * margin
    low, high = max(low, -most), min(high, most)
    spare = _SPARE * (max(high, margin) - min(low, 0.0))
    left, right = min(low, 0.0) - spare, max(high, margin) + spare
    start, end, mark, zero = (100 * (each - left) / (right - left) for each in (low, high, margin, 0.0))
    return Bar(start, end, mark, zero)


def _value(value: float, limit: float) -> Bar:
    right = (1 + _SPARE) * max(value, limit)
    return Bar(0.0, 100 * max(value, 0.0) / right, 100 * limit / right, None)
