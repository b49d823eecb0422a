"""A trace in figures."""

from dataclasses import dataclass

from penstock_engine.trace import Trace
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Figures:
    """What a trace adds up to. Seconds, tokens; shares from 0 to 1. Idle time between steps is in no step's time."""

    steps: int
    requests: int
    seconds: float
    busy_seconds: float
    occupancy: float  # requests that ran in an average step, of `max_running`
    batch: float  # the same, not divided
    prefill_tokens: int
    decode_tokens: int
    preemptions: int
    finished: int
    failed: int
    aborted: int
    hit_rate: float | None  # None where nobody was let in for the first time
    kv_usage: float  # pages in use after an average step, of all
    step_p50: float
    step_p99: float
    queue_p50: float | None  # from submission to the first step; None where nobody was let in for the first time
    queue_p99: float | None

    @classmethod
    def of(cls, trace: Trace) -> "Figures":
        """Those of a trace of at least one step."""
        header, records = trace
        steps = len(records)
        ran = sum(len(each.extended) + len(each.decoded) for each in records)
        ends = [why for each in records for why in each.ended.values()]
        queries = sum(each.prefix_queries for each in records)
        waits = [each.start - when for each in records for when in each.queued.values()]
        times = [each.seconds for each in records]
        return cls(
            steps=steps,
            requests=len({name for each in records for name in (*each.extended, *each.decoded)}),
            seconds=records[-1].end - records[0].start,
            busy_seconds=sum(times),
            occupancy=ran / steps / header.max_running,
            batch=ran / steps,
            prefill_tokens=sum(each.prefill_tokens for each in records),
            decode_tokens=sum(len(each.decoded) for each in records),
            preemptions=sum(len(each.preempted) for each in records),
            finished=sum(why in ("stop", "length") for why in ends),
            failed=sum(why not in ("stop", "length", "abort") for why in ends),
            aborted=ends.count("abort"),
            hit_rate=sum(each.prefix_hits for each in records) / queries if queries else None,
            kv_usage=sum(each.pages_in_use for each in records) / steps / header.pages,
            step_p50=percentile(times, 50),
            step_p99=percentile(times, 99),
            queue_p50=percentile(waits, 50) if waits else None,
            queue_p99=percentile(waits, 99) if waits else None,
        )

    @property
    def prefill_per_step(self) -> float:
        return self.prefill_tokens / self.steps

    @property
    def decode_per_step(self) -> float:
        return self.decode_tokens / self.steps

    @property
    def lines(self) -> list[tuple[str, str]]:
        """Each figure by its name, as people read it."""
        ends = f"{self.finished:,} finished, {self.failed:,} failed, {self.aborted:,} aborted"
        return [
            ("steps", f"{self.steps:,} in {duration(self.seconds)}, busy {_share(self.busy_seconds, self.seconds)}"),
            ("requests", f"{self.requests:,}: {ends}"),
            ("batch", f"{self.batch:.1f} requests in an average step, {self.occupancy:.0%} of the places"),
            ("tokens per step", f"{self.prefill_per_step:,.1f} prefill, {self.decode_per_step:,.1f} decode"),
            ("tokens", f"{self.prefill_tokens:,} prefill, {self.decode_tokens:,} decode"),
            ("step time", f"p50 {duration(self.step_p50)}, p99 {duration(self.step_p99)}"),
            ("queue time", _percentiles(self.queue_p50, self.queue_p99)),
            ("preemptions", f"{self.preemptions:,}"),
            ("prefix hit rate", "nobody was let in" if self.hit_rate is None else f"{self.hit_rate:.1%}"),
            ("KV pages in use", f"{self.kv_usage:.0%} on average"),
        ]

    def table(self) -> Table:
        """For the terminal."""
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(style="dim", no_wrap=True)
        table.add_column()
        for name, figure in self.lines:
            table.add_row(name, figure)
        return table


def percentile(values: list[float], percent: int) -> float:
    """The smallest of `values` that at least `percent` in a hundred of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


def duration(seconds: float) -> str:
    """Three digits, in the unit that suits."""
    for factor, unit in ((1, "s"), (1e3, "ms")):
        if abs(seconds) * factor >= 1:
            return f"{seconds * factor:,.{_decimals(seconds * factor)}f} {unit}"
    return f"{seconds * 1e6:.0f} µs"


def _decimals(value: float) -> int:
    return 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole else "all"


def _percentiles(p50: float | None, p99: float | None) -> str:
    return "nobody was let in" if p50 is None or p99 is None else f"p50 {duration(p50)}, p99 {duration(p99)}"
