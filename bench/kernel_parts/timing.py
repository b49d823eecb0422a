"""Times on the GPU, and the two ceilings that they are held against, measured in the same run.

A kernel is timed inside a captured graph, so that launches from Python do not count, over as many separate sets of
inputs as do not fit into the second-level cache together.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from bench.kernel_parts.contest import MeasureCase

CACHE = 64 << 20  # bytes: more than the 50 MB of an H200's second-level cache
MOST_SETS = 16
REPLAYS = 20
CALLS_IN_GRAPH = 16

Call = Callable[[], object]


@dataclass(frozen=True)
class Ceilings:
    """What this GPU did on large contiguous work: bytes per second copied (read plus written), FLOP per second."""

    copy: float
    matmul: float


def measure_ceilings() -> Ceilings:
    """A copy of 1 GiB and a product of two bfloat16 matrices of 8192 x 8192."""
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / seconds([lambda: target.copy_(source)])
    left, right = (torch.randn(8192, 8192, device="cuda").bfloat16() for _ in range(2))
    product = torch.empty_like(left)
    return Ceilings(copied, 2 * 8192**3 / seconds([lambda: torch.mm(left, right, out=product)]))


def seconds(calls: list[Call]) -> float:
    """Median seconds of one call, of those given in turn."""
    turns = max(1, CALLS_IN_GRAPH // len(calls))
    graph = _captured(calls, turns)
    times: list[float] = []
    for _ in range(REPLAYS):
        begin, end = _event(), _event()
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3 / (turns * len(calls)))
    return statistics.median(times)


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch ships it untyped


def _captured(calls: list[Call], turns: int) -> torch.cuda.CUDAGraph:
    """The first calls compile and allocate outside of the graph; its first replay is not timed."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch ships it untyped
    with torch.cuda.stream(stream):
        for call in calls * 2:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for call in calls * turns:
            call()
    graph.replay()
    torch.cuda.synchronize()
    return graph


@torch.inference_mode()
def measure(case: MeasureCase, ceilings: Ceilings) -> dict[str, Any]:
    """One row of the report; shares are of the ceilings, `of_peer` above 1 is faster than the peer."""
    sets = [case.make() for _ in range(max(1, min(MOST_SETS, CACHE // case.moved)))]
    ours = seconds([contest.ours for contest in sets])
    peers = seconds([contest.peer for contest in sets])
    floor = max(case.moved / ceilings.copy, case.flops / ceilings.matmul)
    return {
        "kernel": case.kernel,
        "size": case.size,
        "us": ours * 1e6,
        "peer": case.peer,
        "peer_us": peers * 1e6,
        "of_peer": peers / ours,
        "moved_bytes": case.moved,
        "flops": case.flops,
        "of_copy": case.moved / ours / ceilings.copy,
        "of_matmul": case.flops / ours / ceilings.matmul,
        "of_floor": floor / ours,
    }
