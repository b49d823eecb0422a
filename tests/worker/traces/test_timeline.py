"""Rows say of each request what the steps said, and nothing else."""

import pytest
from penstock_engine.trace import StepRecord, Trace
from penstock_worker.traces.timeline import Mark, Row, Span, timeline_of

from tests.worker.traces.steps import HEADER, preempted_once, step


def rows_of(*records: StepRecord) -> dict[str, Row]:
    return {row.name: row for row in timeline_of(Trace(HEADER, list(records))).rows}


def marks_of(row: Row) -> list[tuple[str, float]]:
    return [(mark.kind, mark.at) for mark in row.marks]


def test_a_row_waits_prefills_decodes_is_preempted_and_comes_again() -> None:
    b, a = rows_of(*preempted_once().records).values()
    assert [b.name, a.name] == ["b", "a"]  # by when they came
    assert a.spans == [
        Span("waiting", 10.0, 10.0, 1, 0),
        Span("prefill", 10.0, 11.0, 1, 1, 20),
        Span("decode", 11.0, 15.0, 2, 5, 4),
    ]
    assert b.spans == [
        Span("waiting", 9.5, 10.0, 1, 0),
        Span("prefill", 10.0, 11.0, 1, 1, 12),
        Span("decode", 11.0, 12.0, 2, 2, 1),
        Span("waiting", 12.0, 13.0, 4, 3),
        Span("prefill", 13.0, 14.0, 4, 4, 6),
        Span("decode", 14.0, 15.0, 5, 5, 1),
    ]
    assert marks_of(b) == [("cached", 10.0), ("preempted", 12.0), ("cached", 13.0), ("finished", 15.0)]
    assert b.marks[0] == Mark("cached", 10.0, 1, "8 tokens found in the prefix cache")
    assert (b.tokens("prefill"), b.tokens("decode"), b.seconds("waiting")) == (18, 2, 1.5)


def test_a_step_without_the_row_parts_its_spans() -> None:
    (row,) = rows_of(step(1, extended={"a": 4}), step(2), step(3, extended={"a": 4})).values()
    assert [(span.first_step, span.last_step) for span in row.spans] == [(1, 1), (3, 3)]


def test_who_still_waits_at_the_end_waits_until_then() -> None:
    row = rows_of(step(1, decoded=["a", "b"]), step(2, decoded=["a"], preempted=["b"]))["b"]
    assert row.spans[-1] == Span("waiting", 11.0, 12.0, 3, 2)
    assert not row.ended


def test_a_trace_may_begin_in_the_middle_of_a_request() -> None:
    row = rows_of(step(7, decoded=["a"], ended={"a": "stop"}))["a"]
    assert (row.since, row.spans) == (16.0, [Span("decode", 16.0, 17.0, 7, 7, 1)])


@pytest.mark.parametrize(("why", "kind", "at"), [("forward_failed", "failed", 12.0), ("abort", "aborted", 11.0)])
@pytest.mark.parametrize("told_of", ["r", "r/2"])
def test_a_failure_and_an_abort_end_all_choices(told_of: str, why: str, kind: str, at: float) -> None:
    rows = rows_of(
        step(1, decoded=["r", "r/1", "r/2", "r2", "r/x"], ended={"r/1": "stop"}),
        step(2, decoded=["r2", "r/x"], ended={told_of: why}),
    )
    assert {name: marks_of(row) for name, row in rows.items()} == {
        "r": [(kind, at)],
        "r/1": [("finished", 11.0)],
        "r/2": [(kind, at)],
        "r2": [],
        "r/x": [],
    }
    assert rows["r"].marks[0].note == f"ended: {why}"


def test_who_is_dropped_while_it_waits_waits_no_longer() -> None:
    row = rows_of(step(1, decoded=["a"]), step(2, preempted=["a"]), step(3, ended={"a": "abort"}))["a"]
    assert row.spans[-1].kind == "waiting"
    assert (row.spans[-1].end, marks_of(row)[-1]) == (12.0, ("aborted", 12.0))
