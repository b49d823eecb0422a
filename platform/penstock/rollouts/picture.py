"""Rehearsals as a picture (SVG): which part of the runs is in which stage, or has ended how, after so many jobs."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10
from typing import Final

from penstock.rollouts.rehearsal import Rehearsal
from penstock.rollouts.states import Position, State
from penstock.rollouts.verdicts import Verdict

WIDTH: Final = 960
_LEFT: Final = 56
_RIGHT: Final = 28
_TOP: Final = 64
_HEIGHT: Final = 168
_BETWEEN: Final = 94
_POINTS: Final = 240
_STEP_TONES: Final = 4

_STYLE: Final = """
svg{--ground:#fff;--ink:#1c2430;--soft:#667085;--rule:#e4e7ec;--shadow:#e2e6ec;--tone1:#cfdffa;--tone2:#9dbdf3;
--tone3:#6593e6;--tone4:#3466c2;--passed:#0f8a72;--back:#e07b00}
@media(prefers-color-scheme:dark){svg{--ground:#14181f;--ink:#e6e9ee;--soft:#98a2b3;--rule:#2a303a;--shadow:#2c333e;
--tone1:#1f3358;--tone2:#2c4f8f;--tone3:#4675c9;--tone4:#7fa8f2;--passed:#2cc5a5;--back:#f59a23}}
text{font:13px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;fill:var(--ink)}
.ground{fill:var(--ground)}.title{font-size:17px;font-weight:600}.name{font-size:14px;font-weight:600}
.soft{fill:var(--soft)}.tick{fill:var(--soft);font-size:12px;text-anchor:middle}
.level{fill:var(--soft);font-size:12px;text-anchor:end}.rule{stroke:var(--ink);stroke-opacity:.12;fill:none}
.frame{stroke:var(--soft);stroke-opacity:.5;fill:none}
"""


@dataclass(frozen=True, slots=True)
class Panel:
    """One rehearsal, what it shows, and its figures in a few lines."""

    name: str
    notes: Sequence[str]
    rehearsal: Rehearsal


@dataclass(frozen=True, slots=True)
class _Scale:
    """Jobs to the right, by their logarithm."""

    least: float
    limit: float

    @classmethod
    def of(cls, panels: Sequence[Panel]) -> "_Scale":
        """From a little before the first run leaves its first stage."""
        limit = panels[0].rehearsal.limit
        first = min(run[0].jobs for panel in panels for run in panel.rehearsal.runs)
        return cls(max(_round_jobs(10, min(first, limit // 10))), limit)

    def x(self, job: float) -> float:
        return _LEFT + log10(job / self.least) / log10(self.limit / self.least) * (WIDTH - _LEFT - _RIGHT)

    def points(self) -> list[float]:
        """Jobs at equal distances on the axis."""
        step = log10(self.limit / self.least) / (_POINTS - 1)
        return [self.least * 10 ** (at * step) for at in range(_POINTS - 1)] + [self.limit]


@dataclass(frozen=True, slots=True)
class _Area:
    """A stage, or an end, and its colour."""

    name: str
    colour: str
    stage: Position | None = None
    end: Verdict | None = None

    def part(self, rehearsal: Rehearsal, job: float) -> float:
        """Which part of the runs is in it after so many jobs."""
        if self.end is not None:
            return sum(run[-1].verdict is self.end and run[-1].jobs <= job for run in rehearsal.runs) / len(
                rehearsal.runs
            )
        return sum(_stage_at(rehearsal, at, job) == self.stage for at in range(len(rehearsal.runs))) / len(
            rehearsal.runs
        )


def draw(title: str, panels: Sequence[Panel]) -> str:
    """The picture. Its panels share stages and the axis of jobs, which is logarithmic."""
    areas, scale = _areas(panels[0].rehearsal), _Scale.of(panels)
    height = _TOP + len(panels) * (_HEIGHT + _BETWEEN) + 36
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}">']
    parts += [f"<title>{escape(title)}</title><style>{_STYLE}</style>"]
    parts += [f'<rect class="ground" width="{WIDTH}" height="{height}"/>', _text(_LEFT, 32, title, "title")]
    for at, panel in enumerate(panels):
        parts += _panel(panel, areas, scale, _TOP + at * (_HEIGHT + _BETWEEN) + 52)
    parts += _legend(areas, height - 26)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _areas(rehearsal: Rehearsal) -> list[_Area]:
    """From below: those that passed, stages from the last to the first, those rolled back on top."""
    steps = [stage for stage in rehearsal.stages if stage.state is State.CANARY]
    stages = [_Area(stage.title, _colour(stage, len(steps)), stage) for stage in rehearsal.stages]
    passed = _Area("passed", "passed", end=Verdict.PROMOTE)
    return [passed, *reversed(stages), _Area("rolled back", "back", end=Verdict.ROLLBACK)]


def _colour(stage: Position, steps: int) -> str:
    if stage.state is State.SHADOW:
        return "shadow"
    return f"tone{1 + round(stage.step * (_STEP_TONES - 1) / max(steps - 1, 1))}"


def _stage_at(rehearsal: Rehearsal, run: int, job: float) -> Position | None:
    passages = rehearsal.runs[run]
    at = bisect_right([passage.jobs for passage in passages], job)
    if at < len(passages):
        return passages[at].stage
    return passages[-1].stage if passages[-1].verdict is Verdict.HOLD else None


def _panel(panel: Panel, areas: Sequence[_Area], scale: _Scale, top: float) -> Iterator[str]:
    yield _text(_LEFT, top - 12 - 18 * len(panel.notes), panel.name, "name")
    for at, note in enumerate(reversed(panel.notes)):
        yield _text(_LEFT, top - 12 - 18 * at, note, "soft")
    jobs = scale.points()
    floors = [0.0] * len(jobs)
    for area in areas:
        ceilings = [low + area.part(panel.rehearsal, job) for low, job in zip(floors, jobs, strict=True)]
        outline = [*_bends(jobs, ceilings), *reversed(_bends(jobs, floors))]
        points = " ".join(f"{scale.x(job):.1f},{_y(level, top):.1f}" for job, level in outline)
        yield f'<polygon points="{points}" fill="var(--{area.colour})"/>'
        floors = ceilings
    yield from _axes(scale, top)


def _bends(jobs: Sequence[float], levels: Sequence[float]) -> list[tuple[float, float]]:
    """The points of a line without those between equals, which change nothing."""
    last = len(jobs) - 1
    return [
        (jobs[at], levels[at])
        for at in range(len(jobs))
        if at in (0, last) or not levels[at - 1] == levels[at] == levels[at + 1]
    ]


def _axes(scale: _Scale, top: float) -> Iterator[str]:
    for percent in (0, 50, 100):
        y = _y(percent / 100, top)
        yield f'<path class="rule" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>'
        yield _text(_LEFT - 8, y + 4, f"{percent}%", "level")
    for job in _round_jobs(scale.least, scale.limit):
        x = scale.x(job)
        yield f'<path class="rule" d="M{x:.1f} {top}V{top + _HEIGHT + 5}"/>'
        yield _text(x, top + _HEIGHT + 20, f"{job:,}" + (" jobs" if job == scale.least else ""), "tick")
    yield f'<rect class="frame" x="{_LEFT}" y="{top}" width="{WIDTH - _LEFT - _RIGHT}" height="{_HEIGHT}"/>'


def _legend(areas: Sequence[_Area], y: float) -> Iterator[str]:
    x: float = _LEFT
    for area in (*areas[-2:0:-1], areas[0], areas[-1]):
        yield f'<rect x="{x}" y="{y - 10}" width="12" height="12" rx="2" fill="var(--{area.colour})"/>'
        yield _text(x + 18, y, area.name, "soft")
        x += 38 + 7.2 * len(area.name)


def _round_jobs(least: float, most: float) -> list[int]:
    powers = range(floor(log10(least)), ceil(log10(most)) + 1)
    return [each * 10**power for power in powers for each in (1, 2, 5) if least <= each * 10**power <= most]


def _y(level: float, top: float) -> float:
    return top + (1 - level) * _HEIGHT


def _text(x: float, y: float, text: str, style: str) -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'
