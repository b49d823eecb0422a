"""What the page of usage shows: bars by day on an axis with round numbers, and one line for each group."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from decimal import Decimal
from math import ceil, floor, log10
from typing import Final, Self

from penstock.usage.reports import UsageRow

_MOST_STEPS: Final = 4
_ROUND: Final = (1, 2, 2.5, 5, 10)
_UNITS: Final = ((1_000_000_000, "B"), (1_000_000, "M"), (1000, "K"))


@dataclass(frozen=True, slots=True)
class Day:
    """What one day's jobs used, over all of their models."""

    day: date
    jobs: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.output_tokens

    def with_more(self, row: UsageRow) -> Self:
        """The day with that row's usage added."""
        return replace(
            self,
            jobs=self.jobs + row.jobs,
            prompt_tokens=self.prompt_tokens + row.prompt_tokens,
            output_tokens=self.output_tokens + row.output_tokens,
        )


@dataclass(frozen=True, slots=True)
class Axis:
    """The scale of the bars: `ticks` from 0 to `top`, which no bar passes, at equal distances."""

    ticks: Sequence[float]

    @property
    def top(self) -> float:
        return self.ticks[-1]


@dataclass(frozen=True, slots=True)
class Group:
    """The usage of one model, version, key or tag. Costs by currency; `unpriced` jobs had no price and are in none."""

    name: str
    jobs: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    device_seconds: float = 0.0
    costs: dict[str, Decimal] = field(default_factory=dict)
    unpriced: int = 0

    def with_more(self, row: UsageRow) -> Self:
        """The group with that row's usage added."""
        cost = {} if row.currency is None or row.cost is None else {row.currency: row.cost}
        return replace(
            self,
            jobs=self.jobs + row.jobs,
            prompt_tokens=self.prompt_tokens + row.prompt_tokens,
            cached_tokens=self.cached_tokens + row.cached_tokens,
            output_tokens=self.output_tokens + row.output_tokens,
            device_seconds=self.device_seconds + row.device_seconds,
            costs=self.costs | cost,
            unpriced=self.unpriced + (0 if cost else row.jobs),
        )


def every_day(first: date, count: int, rows: Sequence[UsageRow]) -> list[Day]:
    """A day for each of the span, also where nothing was used."""
    found = {day: Day(day) for day in (first + timedelta(days=number) for number in range(count))}
    for row in rows:  # one for each day and currency
        known = found.get(date.fromisoformat(row.group["day"]))
        if known is not None:
            found[known.day] = known.with_more(row)
    return list(found.values())


def axis(most: int) -> Axis:
    """With two to four steps of 1, 2, 2.5 or 5 times a power of ten, and room for `most`, which is above 0."""
    power = 10.0 ** floor(log10(most / _MOST_STEPS))
    step = next(each * power for each in _ROUND if ceil(most / (each * power)) <= _MOST_STEPS)
    step = max(step, 1.0)  # there is no half token
    return Axis([step * number for number in range(max(ceil(most / step), 1) + 1)])


def groups(rows: Sequence[UsageRow], by: str) -> list[Group]:
    """One for each group, whatever the currencies of its rows, those with the most tokens first."""
    found: dict[str, Group] = {}
    for row in rows:
        name = row.group[by]
        found[name] = found.get(name, Group(name)).with_more(row)
    return sorted(found.values(), key=lambda group: group.prompt_tokens + group.output_tokens, reverse=True)


def short(number: float) -> str:
    """A round number for an axis: `250`, `12.5K`, `3M`."""
    size, unit = next(((size, unit) for size, unit in _UNITS if number >= size), (1, ""))
    return f"{number / size:g}{unit}"
