"""A record of the last steps: who ran when, as prefill or decoding, who was preempted; for a picture of occupancy.

On disk a trace is JSON lines: a header, then one record per step, oldest first.

    {"trace": 1, "max_running": 64, "token_budget": 512, ...}
    {"step": 1, "start": 0.0, "seconds": 0.021, "extended": {"a": 40}, "decoded": [], ...}
"""

import json
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from penstock_engine.batch import ScheduleBatch
from penstock_engine.config import EngineConfig
from penstock_engine.errors import TraceUnreadable
from penstock_engine.request import choice_name
from penstock_engine.stats import EngineStats

FORMAT = 1


class TraceHeader(NamedTuple):
    """What holds for every step. `epoch` is the steady clock's zero, in seconds since 1970."""

    max_running: int
    token_budget: int
    page_size: int
    pages: int
    policy: str
    epoch: float

    @property
    def line(self) -> str:
        return _json({"trace": FORMAT, **self._asdict()})


class StepRecord(NamedTuple):
    """One step, as it was scheduled. Names are `choice_name`s; times are seconds of the steady clock."""

    step: int
    start: float
    seconds: float
    extended: dict[str, int]  # tokens of each that prefilled
    decoded: list[str]  # one token each
    admitted: dict[str, int]  # who was let in, for the first time or again, and how many tokens were found cached
    queued: dict[str, float]  # when those that were let in for the first time had been submitted
    preempted: list[str]
    ended: dict[str, str]  # why: a finish reason, "abort", or a failure's code, which ends all choices
    running: int  # after the step, like all that follows
    waiting: int
    pages_in_use: int
    pages_cached: int
    prefix_queries: int  # in this step: tokens of those let in for the first time,
    prefix_hits: int  # and how many of these were cached

    @property
    def line(self) -> str:
        return _json(self._asdict())

    @property
    def prefill_tokens(self) -> int:
        return sum(self.extended.values())

    @property
    def end(self) -> float:
        return self.start + self.seconds


class Trace(NamedTuple):
    """What `read_trace` found."""

    header: TraceHeader
    records: list[StepRecord]


class StepTrace:
    """A ring of the last `capacity` records; with none, nothing is recorded."""

    def __init__(self, header: TraceHeader, capacity: int) -> None:
        self.header = header
        self._records: deque[StepRecord] = deque(maxlen=capacity)
        self._aborted: list[str] = []
        self._queries = self._hits = 0  # up to the last record

    def __iter__(self) -> Iterator[StepRecord]:
        return iter(self._records)

    @classmethod
    def of(cls, config: EngineConfig, pages: int, epoch: float) -> "StepTrace":
        """The trace of an engine so configured, with a pool of `pages`."""
        header = TraceHeader(
            config.max_running, config.token_budget, config.page_size, pages, config.policy, round(epoch, 3)
        )
        return cls(header, config.trace_steps)

    @property
    def newest(self) -> StepRecord | None:
        return self._records[-1] if self._records else None

    def clear(self) -> None:
        """Forget the records so far: what warmed up is not to be shown."""
        self._records.clear()

    def abort(self, request_id: str) -> None:
        """The caller dropped a request; the next step's record says so."""
        if self._records.maxlen:
            self._aborted.append(request_id)

    def record(self, start: float, seconds: float, batch: ScheduleBatch, stats: Callable[[], EngineStats]) -> None:
        """Keep what became of `batch`, which has been committed and left the engine as `stats` says."""
        if not self._records.maxlen:
            return
        aborted, self._aborted = self._aborted, []
        extended, decoded = _ran(batch)
        now = stats()
        record = StepRecord(
            step=now.steps,
            start=round(start, 6),
            seconds=round(round(start + seconds, 6) - round(start, 6), 6),  # it ends where the next begins, or before
            extended=extended,
            decoded=decoded,
            admitted={each.name: cached for each, cached in batch.entered},
            queued={each.name: round(each.queued_at, 6) for each, _ in batch.entered if not each.preemptions},
            preempted=[each.name for each in batch.preempted],
            ended=dict.fromkeys(aborted, "abort") | _ended(batch),
            running=now.running,
            waiting=now.waiting,
            pages_in_use=now.pages_in_use,
            pages_cached=now.pages_cached,
            prefix_queries=now.prefix_queries - self._queries,
            prefix_hits=now.prefix_hits - self._hits,
        )
        self._queries, self._hits = now.prefix_queries, now.prefix_hits
        self._records.append(record)

    def export(self, path: Path) -> int:
        """Write the records to `path`, oldest first, after a header; returns how many."""
        lines = [self.header.line, *(record.line for record in self._records)]
        path.write_text("".join(lines), encoding="utf-8")
        return len(self._records)


def read_trace(path: Path) -> Trace:
    """What `StepTrace.export` wrote, or a part of it from the header on. Raises TraceUnreadable.

    A last line that was cut short, because its writer was killed or still writes, is left out.
    """
    try:
        first, *lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise TraceUnreadable(path, 1, str(error) if isinstance(error, OSError) else "there is no header") from None
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    header = _parsed(path, 1, first, _header)
    return Trace(header, [_parsed(path, at, line, _record) for at, line in enumerate(lines, start=2)])


def _parsed(path: Path, number: int, line: str, of: Callable[[dict[str, Any]], Any]) -> Any:
    try:
        return of(json.loads(line))
    except (ValueError, TypeError, KeyError) as error:
        raise TraceUnreadable(path, number, f"{type(error).__name__}: {error}") from None


def _header(fields: dict[str, Any]) -> TraceHeader:
    if fields.pop("trace") != FORMAT:
        raise ValueError(f"not a trace of format {FORMAT}")
    return TraceHeader(**fields)


def _record(fields: dict[str, Any]) -> StepRecord:
    return StepRecord(**fields)


def _json(fields: dict[str, Any]) -> str:
    return json.dumps(fields, separators=(",", ":")) + "\n"


def _ran(batch: ScheduleBatch) -> tuple[dict[str, int], list[str]]:
    """Who prefilled, with how many tokens, and who decoded."""
    extended: dict[str, int] = {}
    decoded: list[str] = []
    for each, extend_len in zip(batch.generations, batch.extend_lens, strict=True):
        if extend_len == 1:
            decoded.append(each.name)
        else:
            extended[each.name] = extend_len
    return extended, decoded


def _ended(batch: ScheduleBatch) -> dict[str, str]:
    finished = {choice_name(each.request_id, each.choice): each.finish_reason for each in batch.deltas}
    failed = {choice_name(each.request_id, each.choice): each.code for each in batch.failures}
    return {name: reason for name, reason in finished.items() if reason is not None} | failed
