"""The strips at the top of the picture: for every step the batch, its tokens, who waited, the pages."""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from penstock_engine.trace import StepRecord, TraceHeader

from penstock_worker.traces import svg
from penstock_worker.traces.frame import LEFT, RIGHT, WIDTH, Scale
from penstock_worker.traces.summary import duration
from penstock_worker.traces.timeline import Timeline

GAP = 14
TALL, LOW = 64, 30


class Layer(NamedTuple):
    """One colour of a strip; layers stand on each other."""

    cls: str
    value: Callable[[StepRecord], float]


class Strip(NamedTuple):
    """A strip's name, its height, its layers from the bottom up, and the most there can be, if there is a limit."""

    name: str
    height: int
    layers: tuple[Layer, ...]
    limit: int | None


def strips_of(header: TraceHeader) -> tuple[Strip, ...]:
    decode, prefill = "decode", "prefill"
    return (
        Strip(
            "requests in step",
            TALL,
            (Layer(decode, lambda each: len(each.decoded)), Layer(prefill, lambda each: len(each.extended))),
            header.max_running,
        ),
        Strip(
            "tokens in step",
            TALL,
            (Layer(decode, lambda each: len(each.decoded)), Layer(prefill, lambda each: each.prefill_tokens)),
            header.token_budget,
        ),
        Strip("waiting", LOW, (Layer("wait", lambda each: each.waiting),), None),
        Strip(
            "KV pages",
            TALL,
            (Layer("pages", lambda each: each.pages_in_use), Layer("kept", lambda each: each.pages_cached)),
            header.pages,
        ),
    )


def height_of(strips: Sequence[Strip]) -> int:
    return sum(strip.height + GAP for strip in strips)


def draw_strips(timeline: Timeline, strips: Sequence[Strip], scale: Scale, top: float) -> Iterable[str]:
    """All strips, one under the other from `top` on; over them a column for each step, which tells of it."""
    columns = _columns(timeline.records, scale)
    y = top
    for strip in strips:
        yield from _draw(strip, timeline.records, columns, y)
        y += strip.height + GAP
    for record, (left, right) in zip(timeline.records, columns, strict=True):
        yield svg.rect(left, top, max(right - left, 0.5), y - GAP - top, "hit", _told(record, timeline))


def _draw(
    strip: Strip, records: Sequence[StepRecord], columns: Sequence[tuple[float, float]], top: float
) -> Iterable[str]:
    base = top + strip.height
    peak = max(sum(layer.value(record) for layer in strip.layers) for record in records)
    full = max(peak, 1)
    if strip.limit is not None and strip.limit <= 4 * full:
        full = max(full, strip.limit)
        y = base - strip.height * strip.limit / full
        yield svg.line(LEFT, y, WIDTH - RIGHT, y, "limit")
    heights = [0.0] * len(records)
    layers: list[str] = []
    for layer in strip.layers:
        own = (layer.value(record) * strip.height / full for record in records)
        heights = [below + height for below, height in zip(heights, own, strict=True)]
        steps = ((left, right, height) for (left, right), height in zip(columns, heights, strict=True))
        layers.append(svg.area(steps, base, layer.cls))
    yield from reversed(layers)  # each hides the lower part of the one that stands on it
    yield svg.line(LEFT, base, WIDTH - RIGHT, base, "rule")
    yield svg.text(strip.name, LEFT - 10, top + 11, "label")
    bound = "" if strip.limit is None else f" of {strip.limit:,}"
    yield svg.text(f"peak {peak:,.0f}{bound}", LEFT - 10, top + 25, "label")


def _columns(records: Sequence[StepRecord], scale: Scale) -> list[tuple[float, float]]:
    """Where each step lies. What lies between two steps belongs to the first, unless it is longer than that."""
    ends = [after.start if after.start - each.end <= each.seconds else each.end for each, after in pairwise(records)]
    return [(scale.x(each.start), scale.x(end)) for each, end in zip(records, [*ends, records[-1].end], strict=True)]


def _told(record: StepRecord, timeline: Timeline) -> str:
    header = timeline.header
    events = [
        f"let in: {', '.join(record.admitted)}" if record.admitted else "",
        f"preempted: {', '.join(record.preempted)}" if record.preempted else "",
        "ended: " + ", ".join(f"{name} ({why})" for name, why in record.ended.items()) if record.ended else "",
    ]
    return "\n".join(
        [
            f"step {record.step:,} at {duration(record.start - timeline.start)}, took {duration(record.seconds)}",
            f"{len(record.extended)} prefilling {record.prefill_tokens:,} tokens, {len(record.decoded)} decoding",
            f"after it {record.running} running, {record.waiting} waiting",
            f"KV pages: {record.pages_in_use:,} in use, {record.pages_cached:,} cached, of {header.pages:,}",
            *filter(None, events),
        ]
    )
