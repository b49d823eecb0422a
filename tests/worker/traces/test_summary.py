"""The figures of a trace, against those worked out by hand."""

from io import StringIO

import pytest
from penstock_engine.trace import Trace
from penstock_worker.traces.summary import Figures, duration, percentile
from rich.console import Console

from tests.worker.traces.steps import HEADER, preempted_once, step


def test_every_figure_of_a_small_trace() -> None:
    figures = Figures.of(preempted_once())
    assert figures == Figures(
        steps=5,
        requests=2,
        seconds=5.0,
        busy_seconds=5.0,
        occupancy=9 / 5 / 4,
        batch=9 / 5,
        prefill_tokens=38,
        decode_tokens=6,
        preemptions=1,
        finished=2,
        failed=0,
        aborted=0,
        hit_rate=8 / 40,
        kv_usage=14 / 5 / 20,
        step_p50=1.0,
        step_p99=1.0,
        queue_p50=0.0,
        queue_p99=0.5,
    )
    assert (figures.prefill_per_step, figures.decode_per_step) == (7.6, 1.2)


def test_ends_are_told_apart_and_idle_time_is_no_steps() -> None:
    ended = {"a": "stop", "b": "length", "c": "abort", "d": "forward_failed", "e": "deadline_exceeded"}
    figures = Figures.of(Trace(HEADER, [step(1, ended=ended), step(9, decoded=["f"])]))
    assert (figures.finished, figures.aborted, figures.failed) == (2, 1, 2)
    assert (figures.seconds, figures.busy_seconds) == (9.0, 2.0)
    assert (figures.hit_rate, figures.queue_p50) == (None, None)


def test_the_terminal_gets_them_all() -> None:
    console = Console(width=100, record=True, file=StringIO())
    console.print(Figures.of(preempted_once()).table())
    text = console.export_text()
    for part in ("5 in 5.00 s, busy 100%", "1.8 requests", "45% of the places", "7.6 prefill, 1.2 decode", "20.0%"):
        assert part in text


@pytest.mark.parametrize(("percent", "expected"), [(50, 2), (51, 3), (75, 3), (76, 4), (99, 4)])
def test_percentiles_are_values_that_occurred(percent: int, expected: float) -> None:
    assert percentile([4, 1, 3, 2], percent) == expected


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0 µs"), (0.000_25, "250 µs"), (0.0042, "4.20 ms"), (0.42, "420 ms"), (12.34, "12.3 s")]
)
def test_durations_have_three_digits(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown
