"""What a chart is asked for, checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from penstock.problems import refuse_field
from penstock.rollups.series import SERIES, Series
from penstock.rollups.writing import HOUR, MINUTE, MINUTES_KEPT

MOST_MOMENTS: Final = 1500
STEPS: Final = (60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400)
_FEWEST_MOMENTS: Final = 60  # of a chart whose step nobody asked for


@dataclass(frozen=True, slots=True)
class Question:
    """What a chart shows. `only` are labels that points must have; each value of the label `by` gets a line."""

    series: Sequence[Series]
    since: datetime
    until: datetime
    step: int
    """Seconds, a whole number of minutes. `since` is a multiple of it."""
    by: str | None = None
    only: Mapping[str, str] = field(default_factory=dict)

    @property
    def kept_step(self) -> int:
        """The length of the points that answer it."""
        return MINUTE if self.step % HOUR else HOUR


def ask(
    names: Sequence[str],
    since: datetime,
    until: datetime,
    *,
    step: int | None = None,
    by: str | None = None,
    only: Mapping[str, str] | None = None,
) -> Question:
    """A question that can be answered; without `step` one is chosen. Raises `ValidationFailed` for any other."""
    series = [_known(name) for name in names]
    _refuse_labels(series, by, only or {})
    if until <= since:
        raise refuse_field("to", "is not after from", "it must be a later moment")
    step = step or step_for(since, until)
    if step % MINUTE:
        raise refuse_field("step", "is no whole number of minutes", "it must be 60, 120, ... seconds")
    if (until - since).total_seconds() / step > MOST_MOMENTS:
        raise refuse_field("step", f"makes more than {MOST_MOMENTS} moments of this time", "it must be longer")
    return Question(series, _aligned(since, step), until, step, by, only or {})


def step_for(since: datetime, until: datetime) -> int:
    """The longest step in use that still gives a chart of that time enough moments, of points that are kept."""
    seconds = (until - since).total_seconds()
    fitting = [step for step in STEPS if seconds / step >= _FEWEST_MOMENTS]
    step = fitting[-1] if fitting else STEPS[0]
    return max(step, HOUR) if timedelta(seconds=seconds) > MINUTES_KEPT else step


def refuse_forgotten(question: Question, now: datetime) -> None:
    """Raise `ValidationFailed` for a question of minutes that are no longer kept."""
    if question.kept_step == MINUTE and question.since < now - MINUTES_KEPT - timedelta(seconds=question.step):
        raise refuse_field(
            "step", f"wants minutes, which are kept for {MINUTES_KEPT.days} days", "it must be whole hours: 3600, 7200"
        )


def _known(name: str) -> Series:
    if name not in SERIES:
        raise refuse_field("series", f"{name!r} is none", f"there are {', '.join(SERIES)}")
    return SERIES[name]


def _refuse_labels(series: Sequence[Series], by: str | None, only: Mapping[str, str]) -> None:
    wanted = [("by", by)] * (by is not None) + [(label, label) for label in only]
    for each in series:
        for parameter, label in wanted:
            if label not in each.labels:
                has = ", ".join(each.labels) or "no labels"
                raise refuse_field(parameter, f"asks for a label that {each.name} does not have", f"it has {has}")


def _aligned(moment: datetime, step: int) -> datetime:
    seconds = int(moment.timestamp())
    return datetime.fromtimestamp(seconds - seconds % step, UTC)
