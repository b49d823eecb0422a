"""The picture is well formed, stands alone, and lies where the figures say. How it looks, eyes must judge."""

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest
from penstock_engine.trace import Trace
from penstock_worker.traces import svg
from penstock_worker.traces.frame import LEFT, RIGHT, WIDTH, Scale
from penstock_worker.traces.picture import draw
from penstock_worker.traces.summary import Figures
from penstock_worker.traces.timeline import timeline_of

from tests.worker.traces.steps import HEADER, preempted_once, step

SVG = "{http://www.w3.org/2000/svg}"


def drawn(trace: Trace, name: str = "test") -> ElementTree.Element:
    return ElementTree.fromstring(draw(timeline_of(trace), Figures.of(trace), name))


def of_class(picture: ElementTree.Element, tag: str, cls: str) -> list[ElementTree.Element]:
    return [each for each in picture.iter(f"{SVG}{tag}") if each.get("class") == cls]


def titles(picture: ElementTree.Element, tag: str, cls: str) -> list[str]:
    return [each.findtext(f"{SVG}title", "") for each in of_class(picture, tag, cls)]


def test_spans_lie_where_their_time_is() -> None:
    """Five steps of a second each: a fifth of the width is a second."""
    picture = drawn(preempted_once())
    second = (WIDTH - RIGHT - LEFT) / 5
    spans = [each for each in of_class(picture, "rect", "prefill") if each.find(f"{SVG}title") is not None]
    found = sorted((float(each.get("x", "")), float(each.get("width", ""))) for each in spans)
    expected = [(LEFT, second), (LEFT, second), (LEFT + 3 * second, second)]
    assert [pytest.approx(each, abs=0.01) for each in expected] == found
    longest = max(float(each.get("width", "")) for each in of_class(picture, "rect", "decode"))
    assert longest == pytest.approx(4 * second, abs=0.01)


def test_who_waited_before_the_first_step_is_drawn_from_there_on() -> None:
    lines = [each.get("d", "") for each in of_class(drawn(preempted_once()), "path", "waiting")]
    assert all(float(x) >= LEFT for each in lines for x in re.findall(r"[ML]([-\d.]+) ", each))


def test_attributes_are_escaped_too() -> None:
    assert svg.element("g", cls='a"><b') == '<g class="a&quot;&gt;&lt;b"/>'


def test_marks_and_steps_tell_what_happened() -> None:
    picture = drawn(preempted_once())
    assert [title for title in titles(picture, "path", "preempted") if title] == [
        "step 3 at 2.00 s\npreempted: its pages went to others"
    ]
    assert len([title for title in titles(picture, "circle", "finished") if title]) == 2
    told = titles(picture, "rect", "hit")
    steps = [title for title in told if title.startswith("step ")]
    assert len(steps) == 5
    assert steps[2].splitlines() == [
        "step 3 at 2.00 s, took 1.00 s",
        "0 prefilling 0 tokens, 1 decoding",
        "after it 1 running, 2 waiting",
        "KV pages: 2 in use, 2 cached, of 20",
        "preempted: b",
    ]
    (row,) = [title for title in told if title.startswith("b\n")]
    assert "prefill: 18 tokens in 2.00 s" in row
    assert "step 3: preempted" in row


def test_the_strips_stand_as_high_as_the_figures() -> None:
    """Requests in step, decode below prefill: 2 of 4 places are half of the strip."""
    picture = drawn(preempted_once())
    whole = of_class(picture, "path", "prefill")[0].get("d", "")
    base = float(re.match(r"M\S+ ([\d.]+)V", whole)[1])  # type: ignore[index]  # it begins at the base
    heights = [base - float(top) for top in re.findall(r"V(\S+?)H", whole)]
    assert heights == [32, 32, 16, 32, 32]
    below = of_class(picture, "path", "decode")[0].get("d", "")
    assert [base - float(top) for top in re.findall(r"V(\S+?)H", below)] == [0, 32, 16, 16, 32]


def test_a_strip_falls_to_its_base_where_nothing_ran() -> None:
    trace = Trace(HEADER, [step(1, decoded=["a"]), step(6, decoded=["a"])])
    path = of_class(drawn(trace), "path", "decode")[0].get("d", "")
    assert path.count("M") == 2


def test_it_loads_nothing_and_runs_nothing() -> None:
    markup = draw(timeline_of(preempted_once()), Figures.of(preempted_once()), "test")
    assert not re.search(r"<script|href|url\(|@import|<image|onload", markup)
    assert markup.count("http") == 1  # the namespace of SVG
    assert "prefers-color-scheme:dark" in markup


def test_names_are_data_and_no_markup() -> None:
    name = "<script>&\"'/x"
    trace = Trace(HEADER, [step(1, decoded=[name], ended={name: "<b>"})])
    picture = drawn(trace, name)
    assert not list(picture.iter(f"{SVG}script"))
    assert f"{name}: steps 1 to 1" in [each.text for each in of_class(picture, "text", "title")]


def test_many_rows_are_low_and_few_are_named() -> None:
    names = [f"a-rather-long-request-id-{n:04}" for n in range(500)]
    picture = drawn(Trace(HEADER, [step(1, decoded=names)]))
    labels = of_class(picture, "text", "name")
    assert 0 < len(labels) <= 500 * 3 / 11
    assert "".join(labels[0].itertext()).endswith("a-rather-…t-id-0000")
    assert float(picture.get("height", "")) < 2000
    assert len([each for each in titles(picture, "rect", "hit") if each.startswith("a-rather")]) == 500


def test_a_trace_of_a_moment_can_be_drawn() -> None:
    trace = Trace(HEADER, [step(1, seconds=0.0)])
    assert drawn(trace).tag == f"{SVG}svg"


@pytest.mark.parametrize(
    ("span", "first", "last", "count"),
    [
        (5.3, "0.0 s", "5.0 s", 11),
        (0.0042, "0.0 ms", "4.0 ms", 9),
        (61.0, "0 s", "60 s", 7),
        (1.0, "0.0 s", "1.0 s", 11),
    ],
)
def test_ticks_are_round_and_of_one_unit(span: float, first: str, last: str, count: int) -> None:
    ticks = Scale(100.0, 100.0 + span).ticks()
    assert (ticks[0][1], ticks[-1][1], len(ticks)) == (first, last, count)
    assert replace(Scale(0.0, 1.0), end=0.0).ticks() == [(0.0, "0")]
