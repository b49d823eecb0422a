"""The rows of the picture: a request each, in the order in which they came."""

from collections.abc import Iterable, Sequence

from penstock_worker.traces import svg
from penstock_worker.traces.frame import LEFT, RIGHT, WIDTH, Scale, nearly
from penstock_worker.traces.summary import duration
from penstock_worker.traces.timeline import Mark, MarkKind, Row, Span, Timeline

TALLEST, LOWEST, ALL_ROWS = 18.0, 3.0, 760.0
NAME_SIZE = 11.0
NAME_LENGTH = 20


def row_height(rows: int) -> float:
    """As tall as all of them have room, within reason."""
    return min(TALLEST, max(LOWEST, ALL_ROWS / max(rows, 1)))


def draw_rows(timeline: Timeline, scale: Scale, top: float) -> Iterable[str]:
    """One row under the other from `top` on; names where there is room for them."""
    height = row_height(len(timeline.rows))
    every = nearly(NAME_SIZE / height)
    for at, row in enumerate(timeline.rows):
        y = top + at * height
        yield "<g>"
        if at % 2:
            yield svg.rect(LEFT, y, WIDTH - RIGHT - LEFT, height, "band")
        told = _told(row, timeline)
        if at % every == 0:
            yield svg.text(_shortened(row.name), LEFT - 10, y + height / 2 + NAME_SIZE / 3, "name", told)
        yield svg.rect(LEFT, y, WIDTH - RIGHT - LEFT, height, "hit", told)
        yield from _draw(row, timeline, scale, y, height)
        yield "</g>"


def draw_mark(kind: MarkKind, x: float, y: float, size: float, title: str = "") -> str:
    """A mark whose centre is (x, y), `size` from there to its edge."""
    if kind == "finished":
        return svg.element("circle", *svg.titled(title), cx=x, cy=y, r=size * 0.7, cls=kind)
    left, right, top, bottom = (svg.short(each) for each in (x - size, x + size, y - size, y + size))
    middle_x, middle_y = svg.short(x), svg.short(y)
    shapes: dict[MarkKind, str] = {
        "preempted": f"M{middle_x} {top}L{right} {middle_y}L{middle_x} {bottom}L{left} {middle_y}Z",
        "cached": f"M{left} {top}L{right} {middle_y}L{left} {bottom}Z",
        "failed": f"M{left} {top}L{right} {bottom}M{left} {bottom}L{right} {top}",
        "aborted": f"M{left} {top}H{right}V{bottom}H{left}Z",
    }
    return svg.element("path", *svg.titled(title), d=shapes[kind], cls=kind)


def _draw(row: Row, timeline: Timeline, scale: Scale, y: float, height: float) -> Iterable[str]:
    middle, pad = y + height / 2, height * 0.16
    for start, end in _stays(row.spans):
        yield svg.line(scale.x(start), middle, scale.x(end), middle, "stay")
    for span in row.spans:
        left, right = scale.x(span.start), scale.x(span.end)
        if span.kind == "waiting":
            yield svg.line(left, middle, right, middle, "waiting")
        else:
            width = max(right - left, 0.6)
            yield svg.rect(left, y + pad, width, height - 2 * pad, span.kind, _span_told(span, timeline))
    size = max(1.8, min(4.2, height * 0.27))
    for mark in sorted(row.marks, key=lambda mark: mark.kind != "cached"):  # the others must be seen
        x = scale.x(mark.at) - (size if mark.kind == "cached" else 0)  # not over the short prefill that it explains
        yield draw_mark(mark.kind, x, middle, size, _mark_told(mark, timeline))


def _stays(spans: Sequence[Span]) -> Iterable[tuple[float, float]]:
    """From being let in to leaving: between its steps a row that runs may have had to sit out."""
    stay: list[Span] = []
    for span in [*spans, None]:
        if span is not None and span.kind != "waiting":
            stay.append(span)
        elif stay:
            yield stay[0].start, stay[-1].end
            stay = []


def _shortened(name: str) -> str:
    """Both ends of a long name."""
    if len(name) <= NAME_LENGTH:
        return name
    half = (NAME_LENGTH - 1) // 2
    return f"{name[:half]}…{name[-half:]}"


def _told(row: Row, timeline: Timeline) -> str:
    came = row.since - timeline.start
    lines = [
        row.name,
        f"came at {duration(came)}" if came >= 0 else f"came {duration(-came)} before the first step shown",
        f"waited {duration(row.seconds('waiting'))}",
        f"prefill: {row.tokens('prefill'):,} tokens in {duration(row.seconds('prefill'))}",
        f"decode: {row.tokens('decode'):,} tokens in {duration(row.seconds('decode'))}",
        *(f"step {mark.step:,}: {mark.note}" for mark in row.marks),
    ]
    return "\n".join(lines if row.ended else [*lines, "still here after the last step shown"])


def _span_told(span: Span, timeline: Timeline) -> str:
    when = f"from {duration(span.start - timeline.start)}, {duration(span.end - span.start)} long"
    return f"{span.kind}: {span.tokens:,} tokens, steps {span.first_step:,} to {span.last_step:,}\n{when}"


def _mark_told(mark: Mark, timeline: Timeline) -> str:
    return f"step {mark.step:,} at {duration(mark.at - timeline.start)}\n{mark.note}"
