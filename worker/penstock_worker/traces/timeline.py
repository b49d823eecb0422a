"""From steps to rows: what became of each request, and when.

r7      ......[prefill][ decode        ]◆......[prefill][ decode   ]●
queued  ^     ^ let in                  ^ preempted                 ^ ended
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from penstock_engine.trace import StepRecord, Trace, TraceHeader

SpanKind = Literal["waiting", "prefill", "decode"]
MarkKind = Literal["cached", "preempted", "finished", "aborted", "failed"]
_FINISHED = ("stop", "length")


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time in which a row did one thing; `tokens` ran in its steps, none while it waited."""

    kind: SpanKind
    start: float
    end: float
    first_step: int
    last_step: int
    tokens: int = 0

    def continues(self, kind: SpanKind, step: int) -> bool:
        return self.kind == kind and self.last_step == step - 1


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened to a row at one moment; `note` says what."""

    kind: MarkKind
    at: float
    step: int
    note: str


@dataclass(slots=True)
class Row:
    """One choice of one request, in the order of its time; `since` is when it is first heard of."""

    name: str
    since: float
    spans: list[Span] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    waits_from: float | None = None
    ended: bool = False

    def run(self, kind: SpanKind, record: StepRecord, tokens: int) -> None:
        last = self.spans[-1] if self.spans else None
        if last is not None and last.continues(kind, record.step):
            self.spans[-1] = replace(last, end=record.end, last_step=record.step, tokens=last.tokens + tokens)
        else:
            self.spans.append(Span(kind, record.start, record.end, record.step, record.step, tokens))

    def wait_until(self, end: float, step: int) -> None:
        """It waited, if it did, until the moment before `step`."""
        if self.waits_from is not None:
            self.spans.append(Span("waiting", self.waits_from, end, step, step - 1))
            self.waits_from = None

    def end(self, why: str, at: float, step: int) -> None:
        if not self.ended:
            self.wait_until(at, step)
            self.ended = True
            self.marks.append(Mark(_mark_of(why), at, step, f"ended: {why}"))

    def tokens(self, kind: SpanKind) -> int:
        return sum(span.tokens for span in self.spans if span.kind == kind)

    def seconds(self, kind: SpanKind) -> float:
        return sum(span.end - span.start for span in self.spans if span.kind == kind)


@dataclass(frozen=True, slots=True)
class Timeline:
    """Steps and rows, the rows in the order in which they came. Times are the steady clock's."""

    header: TraceHeader
    records: list[StepRecord]
    rows: list[Row]

    @property
    def start(self) -> float:
        """Of the first step: who waited before that is drawn from there on."""
        return self.records[0].start

    @property
    def end(self) -> float:
        return self.records[-1].end


def timeline_of(trace: Trace) -> Timeline:
    """The rows of a trace of at least one step."""
    rows = _Rows()
    for record in trace.records:
        rows.take(record)
    return Timeline(trace.header, trace.records, rows.finished(trace.records[-1]))


class _Rows:
    def __init__(self) -> None:
        self._rows: dict[str, Row] = {}

    def take(self, record: StepRecord) -> None:
        """In the order of a step: aborted before it, preempted, let in, run, ended."""
        self._end_all(record, [name for name, why in record.ended.items() if why == "abort"], record.start)
        for name in record.preempted:
            row = self._row(name, record.start)
            row.marks.append(Mark("preempted", record.start, record.step, "preempted: its pages went to others"))
            row.waits_from = record.start
        for name, cached in record.admitted.items():
            self._let_in(name, cached, record)
        for name, tokens in record.extended.items():
            self._row(name, record.start).run("prefill", record, tokens)
        for name in record.decoded:
            self._row(name, record.start).run("decode", record, 1)
        self._end_all(record, [name for name, why in record.ended.items() if why != "abort"], record.end)

    def finished(self, last: StepRecord) -> list[Row]:
        for row in self._rows.values():
            row.wait_until(last.end, last.step + 1)
        return sorted(self._rows.values(), key=lambda row: row.since)

    def _row(self, name: str, since: float) -> Row:
        return self._rows.setdefault(name, Row(name, since))

    def _let_in(self, name: str, cached: int, record: StepRecord) -> None:
        row = self._row(name, record.queued.get(name, record.start))
        if name in record.queued:
            row.waits_from = record.queued[name]
        row.wait_until(record.start, record.step)
        if cached:
            row.marks.append(Mark("cached", record.start, record.step, f"{cached} tokens found in the prefix cache"))

    def _end_all(self, record: StepRecord, names: Iterable[str], at: float) -> None:
        for name in names:
            why = record.ended[name]
            for row in [self._row(name, at)] if why in _FINISHED else self._choices(name, at):
                row.end(why, at, record.step)

    def _choices(self, name: str, at: float) -> Iterator[Row]:
        """An abort or a failure ends all choices of a request, and is told of one."""
        yield self._row(name, at)
        request_id, slash, choice = name.rpartition("/")
        first = request_id if slash and choice.isdecimal() and request_id in self._rows else name
        for other, row in [*self._rows.items()]:
            if other == first or (other.startswith(f"{first}/") and other[len(first) + 1 :].isdecimal()):
                yield row


def _mark_of(why: str) -> MarkKind:
    if why in _FINISHED:
        return "finished"
    return "aborted" if why == "abort" else "failed"
