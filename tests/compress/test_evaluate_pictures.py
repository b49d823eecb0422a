"""Pictures: marks where the numbers say, the front that no other beats, labels that can be read."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock_compress.charts import Axis, Box, Panel
from penstock_compress.figures import Estimate, Position, share_of
from penstock_compress.pictures import Candidate, Point, draw_candidates, pareto, position_panel

SVG = "{http://www.w3.org/2000/svg}"


def exactly(value: float) -> Estimate:
    return Estimate(value, None, None, None)


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=12))
def test_the_front_is_what_no_other_beats(pairs: list[tuple[int, int]]) -> None:
    points = [Point(str(at), size, exactly(bad)) for at, (size, bad) in enumerate(pairs)]
    front = pareto(points, lambda each: each.figure.value)
    found = {(each.size, each.figure.value) for each in front}
    unbeaten = {
        (size, bad)
        for size, bad in pairs
        if not any((s <= size and b < bad) or (s < size and b <= bad) for s, b in pairs)
    }
    assert found == unbeaten
    assert len(front) == len(found)
    assert all(one.size < other.size for one, other in pairwise(front))


@pytest.mark.parametrize("logarithmic", [False, True])
def test_axes_place_numbers_in_proportion(logarithmic: bool) -> None:
    axis = Axis(1e-6, 1, 300, 100, logarithmic=logarithmic)
    assert (axis.at(1e-6), axis.at(1)) == (300, 100)
    assert axis.at(0) == 300  # nothing lies outside
    assert axis.at(1e-3) == pytest.approx(200 if logarithmic else 300, abs=0.3)
    ticks = axis.ticks()
    assert len(ticks) >= 5
    assert all(1e-6 * 0.999 <= value <= 1.001 for value, _ in ticks)
    assert {words for _, words in ticks} >= ({"10⁻⁶", "0.01", "1"} if logarithmic else {"0.2", "1.0"})


def panel_of(points: Sequence[tuple[float, float]]) -> Panel:
    panel = Panel("", Axis(0, 10, 80, 800), Axis(0, 10, 400, 80), "", "")
    for x, y in points:
        panel.dot(x, y, "point", "")
    return panel


def test_labels_of_a_crowd_lie_on_nothing() -> None:
    draw = np.random.default_rng(4)
    places = [(5 + x, 5 + y) for x, y in draw.normal(0, 0.7, (7, 2)).tolist()]
    panel = panel_of(places)
    marks = len(panel.taken)
    for at, (x, y) in enumerate(places):
        panel.label(f"candidate {at}", x, y, "name")
    labels = panel.taken[marks:]
    assert len(labels) == 7
    assert not any(one.overlap(other) for one, other in combinations(labels, 2))
    assert not any(label.overlap(mark) for label in labels for mark in panel.taken[:marks])


def test_boxes_know_how_much_they_share() -> None:
    box = Box(0, 0, 10, 10)
    assert box.overlap(Box(8, 5, 20, 20)) == 10
    assert box.overlap(Box(10, 0, 20, 10)) == 0
    assert box.distance(13, 14) == 5
    assert box.distance(5, 5) == 0


def texts_of(root: ElementTree.Element) -> set[str]:
    return {each.text or "" for each in root.iter(f"{SVG}text")}


def test_candidates_are_drawn_with_their_names_and_intervals() -> None:
    candidates = [
        Candidate("int4 & gptq", 350, Estimate(0.03, 0.001, 0.02, 0.04), share_of(90, 100)),
        Candidate("int4 rtn", 350, Estimate(0.3, 0.01, 0.2, 0.4), share_of(80, 100)),
        Candidate("int8", 570, Estimate(0.002, 0.001, 0.001, 0.003), share_of(94, 100)),
    ]
    whole = Candidate("bf16", 1000, exactly(0), share_of(95, 100))
    root = ElementTree.fromstring(draw_candidates(candidates, whole, "A < B", ["note"]))
    assert texts_of(root) >= {"A < B", "note", "int4 & gptq", "int4 rtn", "int8", "35%", "55%", "0.01"}
    classes = [each.get("class") for each in root.iter(f"{SVG}circle")]
    assert (classes.count("best"), classes.count("point")) == (4, 2)  # in both panels
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    for circle in root.iter(f"{SVG}circle"):
        assert 84 <= float(circle.get("cx", 0)) <= width
        assert 0 < float(circle.get("cy", 0)) < height
    heights = [float(each.get("cy", 0)) for each in root.iter(f"{SVG}circle")]
    assert heights[2] > heights[0] > heights[1]  # the better, the lower; up is small in pixels


def test_positions_become_a_line_and_an_area() -> None:
    positions = [Position(0, 1, 8, 1e-3, 1e-1), Position(2, 3, 8, 1e-2, 1e-4), Position(4, 4, 2, 0, 0)]
    panel = position_panel(positions, "along", 1e-3, left=80, top=50)
    area, line, floor = (ElementTree.fromstring(each) for each in panel.marks)
    assert (area.get("class"), line.get("class"), floor.get("class")) == ("band", "mean", "floor")
    assert (panel.y.low, panel.y.high) == (1e-4, 1e-1)
    path = str(line.get("d"))
    points = [list(map(float, each.split())) for each in path.removeprefix("M").split("L")]
    assert points[0] == pytest.approx([80, panel.y.at(1e-3)], abs=0.01)
    assert points[2] == pytest.approx([panel.x.at(2), panel.y.at(1e-2)], abs=0.01)
    assert points[-1][1] == pytest.approx(panel.y.to_low)  # nothing at all lies at the bottom
