"""How long the GPU was at work while something ran: its own record of kernels and copies, overlaps counted once."""

from collections.abc import Callable, Iterable

import torch
from torch.profiler import ProfilerActivity, profile

Span = tuple[float, float]


def covered(spans: Iterable[Span]) -> float:
    """The length of what `spans` (begin, end) cover together: streams may run side by side."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def gpu_seconds(run: Callable[[], object]) -> float | None:
    """Seconds in which the GPU was at work during `run`; None where there is no GPU, or no record of it.

    Recording slows the host down and no kernel: hold it against a time taken without it.
    """
    if not torch.cuda.is_available():
        return None
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as record:
        run()
        torch.cuda.synchronize()
    events = record.events() or []
    spans = [(each.time_range.start, each.time_range.end) for each in events if each.device_type.name == "CUDA"]
    return covered(spans) / 1e6 if spans else None
