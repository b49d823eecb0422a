"""The timeline as one SVG file: no script, no font, nothing to load; what the pointer rests on tells its figures.

title, figures, legend
strips      requests in each step, their tokens, who waits, the pages
rows        a request each, in the order in which they came
axis        seconds since the first step
"""

from collections.abc import Iterable
from datetime import UTC, datetime

from penstock_worker.traces import svg
from penstock_worker.traces.frame import LEFT, RIGHT, STYLE, WIDTH, Scale
from penstock_worker.traces.rows import NAME_SIZE, draw_mark, draw_rows, row_height
from penstock_worker.traces.strips import draw_strips, height_of, strips_of
from penstock_worker.traces.summary import Figures, duration
from penstock_worker.traces.timeline import MarkKind, Timeline

HEAD = 92
AXIS = 30
LEGEND: tuple[tuple[str, str], ...] = (
    ("prefill", "prefill"),
    ("decode", "decode"),
    ("waiting", "waits"),
    ("cached", "prefix found cached"),
    ("preempted", "preempted"),
    ("finished", "finished"),
    ("aborted", "aborted"),
    ("failed", "failed"),
)
SWATCHES = ("prefill", "decode")


def draw(timeline: Timeline, figures: Figures, name: str) -> str:
    """The picture. `name` says whose steps these are."""
    strips, scale = strips_of(timeline.header), Scale(timeline.start, timeline.end)
    rows_top = HEAD + height_of(strips) + 4
    rows_end = rows_top + len(timeline.rows) * row_height(len(timeline.rows))
    parts = [
        f"<style>{STYLE}svg{{--name-size:{NAME_SIZE}px}}</style>",
        svg.rect(0, 0, WIDTH, rows_end + AXIS, "ground"),
        *_head(timeline, figures, name),
        *_grid(scale, HEAD, rows_end),
        *draw_strips(timeline, strips, scale, HEAD),
        *draw_rows(timeline, scale, rows_top),
        *_axis(scale, rows_end),
    ]
    height = rows_end + AXIS
    box = f"0 0 {WIDTH} {svg.short(height)}"
    markup = svg.element(
        "svg", *parts, xmlns="http://www.w3.org/2000/svg", role="img", width=WIDTH, height=height, viewBox=box
    )
    return f"{markup}\n"


def _head(timeline: Timeline, figures: Figures, name: str) -> Iterable[str]:
    header, first, last = timeline.header, timeline.records[0].step, timeline.records[-1].step
    began = datetime.fromtimestamp(header.epoch + timeline.start, UTC)
    yield svg.text(f"{name}: steps {first:,} to {last:,}", 20, 26, "title")
    told = [
        f"{began:%Y-%m-%d %H:%M:%S} UTC",
        f"policy {header.policy}",
        f"{len(timeline.rows)} requests",
        f"{figures.occupancy:.0%} of {header.max_running} places taken in an average step",
        f"in it {figures.prefill_per_step:,.1f} tokens of prefill and {figures.decode_per_step:,.1f} of decode",
    ]
    more = [
        f"step p50 {duration(figures.step_p50)}, p99 {duration(figures.step_p99)}",
        f"{figures.preemptions} preemptions",
        "" if figures.hit_rate is None else f"prefix hit rate {figures.hit_rate:.0%}",
    ]
    yield svg.text("  ·  ".join(told), 20, 45, "soft")
    yield svg.text("  ·  ".join(filter(None, more)), 20, 61, "soft")
    yield from _legend()


def _legend() -> Iterable[str]:
    x, y = float(LEFT), 80
    for kind, words in LEGEND:
        if kind in SWATCHES:
            yield svg.rect(x, y - 9, 14, 10, kind)
        elif kind == "waiting":
            yield svg.line(x, y - 4, x + 14, y - 4, kind)
        else:
            yield draw_mark(_mark_kind(kind), x + 7, y - 4, 4)
        yield svg.text(words, x + 19, y, "end")
        x += 36 + 6.1 * len(words)


def _mark_kind(kind: str) -> MarkKind:
    kinds: tuple[MarkKind, ...] = ("cached", "preempted", "finished", "aborted", "failed")
    return next(each for each in kinds if each == kind)


def _grid(scale: Scale, top: float, bottom: float) -> Iterable[str]:
    for seconds, _ in scale.ticks():
        x = scale.x(scale.start + seconds)
        yield svg.line(x, top, x, bottom, "rule")


def _axis(scale: Scale, y: float) -> Iterable[str]:
    yield svg.line(LEFT, y, WIDTH - RIGHT, y, "rule")
    for seconds, words in scale.ticks():
        yield svg.text(words, scale.x(scale.start + seconds), y + 17, "tick")
