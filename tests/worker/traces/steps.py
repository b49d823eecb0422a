"""Traces written by hand: a step a second, from second 10 on."""

from typing import Any

from penstock_engine.trace import StepRecord, Trace, TraceHeader

HEADER = TraceHeader(max_running=4, token_budget=32, page_size=16, pages=20, policy="continuous", epoch=1_700_000_000.0)


def step(number: int, **fields: Any) -> StepRecord:
    empty: dict[str, Any] = {
        "extended": {},
        "decoded": [],
        "admitted": {},
        "queued": {},
        "preempted": [],
        "ended": {},
        "running": 0,
        "waiting": 0,
        "pages_in_use": 0,
        "pages_cached": 0,
        "prefix_queries": 0,
        "prefix_hits": 0,
    }
    return StepRecord(**{"step": number, "start": 9.0 + number, "seconds": 1.0, **empty, **fields})


def preempted_once() -> Trace:
    """`a` runs through; `b` waits half a second, has eight tokens cached, and loses its pages in step 3."""
    return Trace(
        HEADER,
        [
            step(
                1,
                extended={"a": 20, "b": 12},
                admitted={"a": 0, "b": 8},
                queued={"a": 10.0, "b": 9.5},
                running=2,
                pages_in_use=4,
                prefix_queries=40,
                prefix_hits=8,
            ),
            step(2, decoded=["a", "b"], running=2, waiting=1, pages_in_use=4),
            step(3, decoded=["a"], preempted=["b"], running=1, waiting=2, pages_in_use=2, pages_cached=2),
            step(4, extended={"b": 6}, decoded=["a"], admitted={"b": 16}, running=2, pages_in_use=4),
            step(5, decoded=["a", "b"], ended={"a": "length", "b": "stop"}, pages_cached=3),
        ],
    )
