"""Times on the device, and the ceilings that they are held against, measured in the same run.

On a GPU a call is timed inside a captured graph, so that launches from Python do not count, over as many separate sets
of inputs as the second-level cache holds several times over. Before the first time is taken the graph runs for a
while: an idle GPU's clock is a fraction of its own. Times are medians, with the spread between the first and the last
fifth of them beside: a difference smaller than that is none.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from bench.kernel_parts.contest import MeasureCase

CACHES_FILLED = 4  # times over, by all sets of inputs together
MOST_SETS = 64
MOST_BYTES = 16 << 30  # of the inputs of all sets
REPLAYS = 20
CALLS_IN_GRAPH = 16
WARM_UP_SECONDS = 0.1
GIB = 1 << 30

Call = Callable[[], object]


class Timing(NamedTuple):
    """Seconds of one call: the median, and how far the fifth and the last fifth are apart, as a share of it."""

    seconds: float
    spread: float


@dataclass(frozen=True)
class Ceilings:
    """What this device did on large contiguous work: bytes per second, and operations per second by dtype.

    `copy` counts bytes read and bytes written, `read` bytes read. A product that this device or this torch cannot do is
    not among `matmul`.
    """

    copy: float
    read: float
    matmul: dict[str, float]

    def floor(self, moved: int, flops: int, dtype: str = "bfloat16") -> float | None:
        """Seconds that nothing can be faster than which moves so many bytes and does so many operations.

        None where there are operations of a dtype whose ceiling is not known.
        """
        if not flops:
            return moved / max(self.copy, self.read)
        rate = self.matmul.get(dtype)
        return max(moved / max(self.copy, self.read), flops / rate) if rate else None


@torch.inference_mode()
def measure_ceilings(device: str = "cuda", *, elements: int = 1 << 29, side: int = 8192) -> Ceilings:
    """A copy and a read of `elements` bfloat16 (1 GiB unless told), products of `side` x `side`."""
    source = torch.randn(elements, device=device).bfloat16()
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / timed([lambda: target.copy_(source)], device).seconds
    # The largest of each row: one pass, a number written for a thousand read.
    rows = source.view(-1, 1024)
    read = source.nbytes / timed([lambda: torch.amax(rows, 1)], device).seconds
    return Ceilings(copied, read, _products(device, side))


def _products(device: str, side: int) -> dict[str, float]:
    left, right = (torch.randn(side, side, device=device) for _ in range(2))
    one = torch.ones((), device=device)
    bf16 = left.bfloat16(), right.bfloat16()
    int8 = tuple((each * 40).clamp(-127, 127).to(torch.int8) for each in (left, right))
    fp8 = left.to(torch.float8_e4m3fn), right.to(torch.float8_e4m3fn)
    calls: dict[str, Call] = {
        "bfloat16": lambda: torch.mm(*bf16),
        "int8": lambda: torch._int_mm(int8[0], int8[1].T),
        "fp8": lambda: torch._scaled_mm(fp8[0], fp8[1].T, one, one, out_dtype=torch.bfloat16),
    }
    found = {}
    for name, call in calls.items():
        try:
            found[name] = 2 * side**3 / timed([call], device).seconds
        except (RuntimeError, NotImplementedError):  # this device, or this torch on it, multiplies no such numbers
            continue
    return found


def timed(calls: Sequence[Call], device: str = "cuda", *, captured: bool = True) -> Timing:
    """Of one call, of those given in turn. What cannot be `captured` in a graph is launched from Python each time."""
    on_gpu = torch.device(device).type == "cuda"
    turns = max(1, CALLS_IN_GRAPH // len(calls)) if on_gpu else 1

    def run() -> None:
        for call in [*calls] * turns:
            call()

    if not on_gpu:
        return _summary(_host_seconds(run), len(calls))
    run_again = _captured(calls, run) if captured else run
    _warm_up(run_again)
    return _summary([_event_seconds(run_again) for _ in range(REPLAYS)], turns * len(calls))


def _summary(times: list[float], calls: int) -> Timing:
    ordered = sorted(times)
    fifth = len(ordered) // 5
    middle = statistics.median(ordered)
    return Timing(middle / calls, (ordered[-1 - fifth] - ordered[fifth]) / middle)


def _host_seconds(run: Call) -> list[float]:
    """On a CPU nothing is measured but that all of this runs."""
    times = []
    for _ in range(2):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times


def _warm_up(run: Call) -> None:
    end = time.perf_counter() + WARM_UP_SECONDS
    while time.perf_counter() < end:
        run()
        torch.cuda.synchronize()


def _event_seconds(run: Call) -> float:
    begin, end = _event(), _event()
    begin.record()
    run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch ships it untyped


def _captured(calls: Sequence[Call], run: Call) -> Call:
    """The first calls compile and allocate outside of the graph, on the stream that is captured."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch ships it untyped
    stream.wait_stream(torch.cuda.current_stream())  # on which the inputs are being written
    with torch.cuda.stream(stream):
        for call in [*calls] * 2:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        run()
    return graph.replay


def sets_needed(moved: int, cache: int) -> int:
    """Separate inputs of `moved` bytes that fill a cache of `cache` bytes CACHES_FILLED times, as far as is sensible.

    Small inputs stay in the cache all the same, where a model would have them too: their producer ran just before.
    """
    wanted = -(-CACHES_FILLED * cache // max(1, moved))
    return max(1, min(wanted, MOST_SETS, MOST_BYTES // max(1, moved)))


def cache_bytes(device: str) -> int:
    """Of the second-level cache; 0 on a CPU, where nothing is claimed of bandwidth."""
    if torch.device(device).type != "cuda":
        return 0
    return int(torch.cuda.get_device_properties(device).L2_cache_size)


@torch.inference_mode()
def measure(case: MeasureCase, ceilings: Ceilings, device: str = "cuda") -> dict[str, Any]:
    """One row of the report; shares are of the ceilings, `of_peer` above 1 is faster than the peer.

    `cold` says whether the inputs fill the second-level cache several times over; where they do not, bandwidth is the
    cache's as much as the memory's.
    """
    cache = cache_bytes(device)
    sets = [case.make() for _ in range(sets_needed(case.moved, cache))]
    ours = timed([contest.ours for contest in sets], device)
    peers = timed([contest.peer for contest in sets], device)
    floor = ceilings.floor(case.moved, case.flops, case.arithmetic)
    return {
        "kernel": case.kernel,
        "size": case.size,
        "us": ours.seconds * 1e6,
        "spread": ours.spread,
        "peer": case.peer,
        "peer_us": peers.seconds * 1e6,
        "of_peer": peers.seconds / ours.seconds,
        "moved_bytes": case.moved,
        "flops": case.flops,
        "bytes_per_s": case.moved / ours.seconds,
        "cold": len(sets) * case.moved >= CACHES_FILLED * cache,
        "of_copy": case.moved / ours.seconds / ceilings.copy,
        "of_floor": floor / ours.seconds if floor else None,
    }
