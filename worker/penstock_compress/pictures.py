"""What an evaluation looks like: the divergence along the text, and several candidates by size."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from typing import Final, NamedTuple

from penstock_compress.charts import Axis, Panel, picture
from penstock_compress.figures import Estimate, Evaluation, Position

LEAST: Final = 1e-8  # nats: less is rounding
LEFT: Final = 84.0
WIDTH: Final = 900.0
HEIGHT: Final = 330.0  # of a panel
SIZE: Final = "size of the weights' files, share of the original's"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A smaller model, as a point: its size, its divergence in nats, and its share of right answers."""

    name: str
    bytes: int
    divergence: Estimate
    right: Estimate | None


class Point(NamedTuple):
    """A candidate on a panel; its size in percent of the whole one's."""

    name: str
    size: float
    figure: Estimate


def draw_evaluation(found: Evaluation, name: str, against: str) -> str:
    """The divergence by position: its mean, and what 99 of 100 positions keep below."""
    ratio = found.candidate.bytes / found.against.bytes
    mean, itself = found.divergence.mean, None if found.noise is None else found.noise.divergence.mean.value
    notes = [
        f"{found.candidate.bytes:,} bytes, {ratio:.0%} of {found.against.bytes:,}; mean KL {mean.value:.2g} nats, "
        f"same first choice {found.divergence.same_top.value:.2%}, "
        f"perplexity {found.divergence.perplexity_ratio.value - 1:+.2%}",
        f"line: mean; area: up to the 99th percentile; {found.sequences:,} sequences, {found.positions:,} positions"
        + ("" if itself is None else f"; dashed: noise, {against} against itself: {itself:.2g}"),
    ]
    panel = position_panel(found.by_position, "KL divergence along the text", itself, left=LEFT, top=112)
    return picture(f"{name} against {against}", notes, [panel], WIDTH, 112 + HEIGHT + 56)


def draw_candidates(
    candidates: Sequence[Candidate], whole: Candidate, title: str, notes: Sequence[str], panels: Sequence[Panel] = ()
) -> str:
    """Divergence and right answers against bytes, the best for their size joined by a line.

    `whole` is what they are smaller versions of. Further `panels` are drawn as they are.
    """
    top = 84.0 + 16 * len(notes)
    drawn = [_divergence_panel(candidates, whole, top)]
    if whole.right is not None:
        drawn.append(_right_panel(candidates, whole, top + HEIGHT + 96))
    bottom = max(panel.y.to_low for panel in [*drawn, *panels])
    return picture(title, notes, [*drawn, *panels], WIDTH, bottom + 56)


def position_panel(
    positions: Sequence[Position], title: str, noise: float | None = None, *, left: float, top: float
) -> Panel:
    """The divergence by position, on a logarithmic scale."""
    found = [value for each in positions for value in (each.mean, each.p99)]
    low, high = _powers([max(value, LEAST) for value in found if value > 0] or [LEAST])
    last = positions[-1].last + 1
    x = Axis(0, last, left, WIDTH - 40)
    y = Axis(low, high, top + HEIGHT, top, logarithmic=True)
    panel = Panel(title, x, y, "tokens behind the first that is scored", "KL divergence, nats (log scale)")
    panel.area(_steps(positions, lambda each: each.p99), "band")
    panel.line(_steps(positions, lambda each: each.mean), "mean")
    if noise is not None and noise > low:
        panel.line([(0, noise), (last, noise)], "floor")
    return panel


def pareto(points: Sequence[Point], badness: Callable[[Point], float]) -> list[Point]:
    """Those that no other beats by being as small and better, or as good and smaller; from the smallest on."""
    best: list[Point] = []
    for each in sorted(points, key=lambda each: (each.size, badness(each))):
        if not best or badness(each) < badness(best[-1]):
            best.append(each)
    return best


def _divergence_panel(candidates: Sequence[Candidate], whole: Candidate, top: float) -> Panel:
    low, high = _powers([max(each.divergence.value, LEAST) for each in candidates])
    y = Axis(low, high, top + HEIGHT, top, logarithmic=True)
    title = "Mean KL divergence against size: lower and further left is better"
    panel = Panel(title, _sizes(candidates, whole), y, SIZE, "mean KL divergence, nats (log scale)")
    points = [Point(each.name, 100 * each.bytes / whole.bytes, each.divergence) for each in candidates]
    _draw_points(panel, points, pareto(points, lambda each: each.figure.value), ".2g")
    return panel


def _right_panel(candidates: Sequence[Candidate], whole: Candidate, top: float) -> Panel:
    points = [
        Point(each.name, 100 * each.bytes / whole.bytes, _percent(each.right))
        for each in candidates
        if each.right is not None
    ]
    bounds = [bound for each in points for bound in (each.figure.low, each.figure.high) if bound is not None]
    bounds += [each.figure.value for each in points]
    margin = max(0.2, (max(bounds) - min(bounds)) * 0.08)
    y = Axis(max(0, min(bounds) - margin), min(100, max(bounds) + margin), top + HEIGHT, top, unit="%")
    title = "Right answers against size: higher and further left is better"
    panel = Panel(title, _sizes(candidates, whole), y, SIZE, "right answers")
    if whole.right is not None:
        panel.line([(panel.x.low, 100 * whole.right.value), (panel.x.high, 100 * whole.right.value)], "floor")
    _draw_points(panel, points, pareto(points, lambda each: -each.figure.value), ".1f")
    return panel


def _sizes(candidates: Sequence[Candidate], whole: Candidate) -> Axis:
    shares = [100 * each.bytes / whole.bytes for each in candidates]
    return Axis(floor(min(shares) / 5 - 0.2) * 5, ceil(max(shares) / 5 + 0.2) * 5, LEFT, WIDTH - 80, unit="%")


def _draw_points(panel: Panel, points: Sequence[Point], best: Sequence[Point], form: str) -> None:
    """Marks with their intervals and names; the best for their size are joined by a staircase."""
    stairs = [(best[0].size, best[0].figure.value)]
    for each in best[1:]:
        stairs += [(each.size, stairs[-1][1]), (each.size, each.figure.value)]
    panel.line([*stairs, (panel.x.high, stairs[-1][1])], "front")
    for each in points:
        cls = "best" if each in best else "point"
        figure = each.figure
        if figure.low is not None and figure.high is not None:
            panel.line([(each.size, figure.low), (each.size, figure.high)], f"{cls}-error")
        panel.dot(each.size, figure.value, cls, f"{each.name}: {figure.value:{form}} at {each.size:.1f}% of the size")
    for each in sorted(points, key=lambda each: each not in best):
        panel.label(each.name, each.size, each.figure.value, "best-name" if each in best else "name")


def _percent(share: Estimate) -> Estimate:
    low, high, error = (None if each is None else 100 * each for each in (share.low, share.high, share.error))
    return Estimate(100 * share.value, error, low, high)


def _steps(positions: Sequence[Position], value: Callable[[Position], float]) -> list[tuple[float, float]]:
    """A staircase, each range at its own height."""
    return [(x, value(each)) for each in positions for x in (each.first, each.last + 1)]


def _powers(values: Sequence[float]) -> tuple[float, float]:
    """The powers of ten around them, one apart at least."""
    low, high = floor(log10(min(values))), ceil(log10(max(values)))
    return 10.0**low, 10.0 ** max(high, low + 1)
