"""A scheduler with made-up tokens for a model: its pages, its cache, and a check of all of them after every step.

Where steps overlap, the device here is as late as it can be: it begins with a step when that is waited for.
"""

from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from penstock_engine.admission import Limits, admitted
from penstock_engine.batch import ScheduleBatch, StepSamples
from penstock_engine.bisection import isolate
from penstock_engine.config import Policy
from penstock_engine.page_allocator import PageAllocator
from penstock_engine.radix_cache import NoCache, PrefixCache, RadixCache
from penstock_engine.request import Generation, Request, RunScores, TokenDelta
from penstock_engine.scheduler import Scheduler
from penstock_engine.tables import RowTables

from tests.engine.driving import check_pages

PAGE, VOCABULARY = 4, 99


class ShadowPool:
    """What a KV pool would hold: for each slot, all tokens up to its own, as one number.

    A step that would read anything else of what it takes for its context fails here, whatever the reason.
    """

    def __init__(self, tables: RowTables, pages: int) -> None:
        self.tables = tables
        self.slots = [[0] * PAGE for _ in range(pages + 1)]

    def copy(self, pairs: list[tuple[int, int]]) -> None:
        read = [self.slots[source][:] for source, _ in pairs]
        for content, (_, destination) in zip(read, pairs, strict=True):
            self.slots[destination] = content

    def wipe(self, pages: list[int]) -> None:
        for page in pages:
            self.slots[page] = [0] * PAGE

    def lay_out(self, batch: ScheduleBatch) -> "Layout":
        """What the device is told of a step when it is launched."""
        pages = self.tables.pages
        runs = [
            (each, each.computed_len, extend_len, pages[each.row].tolist())
            for each, extend_len in zip(batch.generations, batch.extend_lens, strict=True)
        ]
        return Layout(runs, list(batch.copies))

    def run(self, layout: "Layout") -> None:
        """What the device does of it, which may be later. Who failed meanwhile runs a token that nobody knows."""
        self.copy(layout.copies)
        for generation, start, extend_len, pages in layout.runs:
            for at, number in list(enumerate(prefix_numbers(generation)))[start : start + extend_len]:
                self.slots[pages[at // PAGE]][at % PAGE] = number
        for generation, start, extend_len, pages in layout.runs:
            known = prefix_numbers(generation)[: start + extend_len]
            held = [number for page in pages[: -(-len(known) // PAGE)] for number in self.slots[page]]
            assert held[: len(known)] == known, "the context of another"


class Layout(NamedTuple):
    """Each generation with its start, its tokens and its row of the page table; and pages to copy before."""

    runs: list[tuple[Generation, int, int, list[int]]]
    copies: list[tuple[int, int]]


class Launched(NamedTuple):
    """A step in flight."""

    batch: ScheduleBatch
    layout: Layout


def prefix_numbers(generation: Generation) -> list[int]:
    start = hash(generation.request.namespace)
    return list(accumulate(generation.tokens, lambda before, token: hash((before, token)), initial=start))[1:]


class House:
    """A scheduler, its pages and cache, and a model that says what it is told to."""

    def __init__(
        self,
        *,
        pages: int,
        max_running: int = 4,
        budget: int = 8,
        policy: Policy = "continuous",
        cached: bool = True,
        quantum: int = 1024,
        overlap: bool = False,
    ) -> None:
        self.allocator = PageAllocator(pages)
        self.cache: PrefixCache = RadixCache(PAGE) if cached else NoCache()
        self.limits = Limits(VOCABULARY, pages * PAGE, pages * PAGE, ())
        self.max_running, self.budget = max_running, budget
        tables = RowTables(max_running, pages, PAGE)
        self.pool = ShadowPool(tables, pages)
        self.scheduler = Scheduler(
            max_running=max_running,
            token_budget=budget,
            policy=policy,
            allocator=self.allocator,
            cache=self.cache,
            tables=tables,
            fair_quantum=quantum,
        )
        self.arrivals = 0
        self.last: ScheduleBatch | None = None
        self.overlap = overlap
        self.flight: Launched | None = None  # on its way behind the last; the device has done nothing of it yet

    def submit(self, request: Request) -> list[Generation]:
        generations = admitted(request, self.limits, arrival=self.arrivals, drawn_seed=0).waiting
        self.arrivals += 1
        for generation in generations:
            self.scheduler.submit(generation)
        return generations

    def step(
        self,
        token: Callable[[Generation], int] = lambda _: 0,
        *,
        finite: Callable[[Generation], bool] = lambda _: True,
        fault: Callable[[ScheduleBatch], Exception | None] = lambda _: None,
        now: float = 0.0,
    ) -> list[TokenDelta]:
        """`finite` says of whom the logits are, `fault` what a run of some of the batch raises."""
        flight = self.flight or self._launch()
        self.flight = self._launch_behind() if flight.batch.generations else None
        batch = self.last = flight.batch
        self._end(flight, partial(self._ran, token=token, finite=finite, fault=fault))
        self.scheduler.expire(now, batch)
        self.drain()
        self.check()
        return batch.deltas

    def _launch(self, *, behind: bool = False) -> Launched:
        batch = self.schedule(behind=behind)
        flight = Launched(batch, self.pool.lay_out(batch))
        self.scheduler.launched(batch)
        return flight

    def _launch_behind(self) -> Launched | None:
        if not self.overlap or not self.scheduler.can_run_ahead:
            return None
        behind = self._launch(behind=True)
        if behind.batch.generations:
            return behind
        self.scheduler.retract(behind.batch)
        return None

    def _ran(
        self,
        batch: ScheduleBatch,
        layout: Layout,
        *,
        token: Callable[[Generation], int],
        finite: Callable[[Generation], bool],
        fault: Callable[[ScheduleBatch], Exception | None],
    ) -> StepSamples:
        self.pool.run(layout)
        if error := fault(batch):
            raise error
        return self.samples(batch, token, finite)

    def _end(self, flight: Launched, ran: Callable[[ScheduleBatch, Layout], StepSamples]) -> None:
        batch = flight.batch

        def commit(part: ScheduleBatch, samples: StepSamples) -> None:
            self.scheduler.launched(part)
            self.scheduler.commit(part, samples)
            batch.absorb(part)

        def blame(generation: Generation, cause: Exception) -> None:
            self.scheduler.fail(generation, batch, "forward_failed", str(cause))

        try:
            samples = ran(*flight)
        except (ValueError, MemoryError):
            self._retract(flight)
            isolate(batch, run=lambda part: ran(part, self.pool.lay_out(part)), commit=commit, blame=blame)
        else:
            self.scheduler.commit(batch, samples)
        self._tidy(batch)

    def _retract(self, flight: Launched) -> None:
        """And what was launched behind it."""
        if self.flight is not None:
            self.scheduler.retract(self.flight.batch)
            flight.batch.absorb(self.flight.batch)
            self.flight = None
        self.scheduler.retract(flight.batch)

    def _tidy(self, batch: ScheduleBatch) -> None:
        self.pool.copy(batch.tail_copies)
        self.pool.wipe([*batch.dirty_pages, *self.allocator._free])  # what is free may be anybody's by now

    def failed_step(self) -> None:
        """The device dies in the middle of a step: the copies may be done or not, nothing is committed."""
        flight = self.flight or self._launch()
        self.flight = self._launch_behind() if flight.batch.generations else None
        self.pool.run(flight.layout)
        self._retract(flight)
        self.check()

    def abort(self, name: str) -> bool:
        dropped = self.scheduler.abort(name)
        self.drain()
        return dropped

    def drain(self) -> None:
        """Where nobody is left, the step in flight is waited for."""
        if self.flight is None or self.busy:
            return
        flight, self.flight = self.flight, None
        self._end(flight, partial(self._ran, token=lambda _: 0, finite=lambda _: True, fault=lambda _: None))

    def schedule(self, *, behind: bool = False) -> ScheduleBatch:
        batch = self.scheduler.schedule()
        assert sum(batch.extend_lens) <= self.budget
        assert len(self.scheduler.running) + len(batch.twins) <= self.max_running
        assert batch.generations or behind or not self.busy, "nothing moves"
        return batch

    def check(self) -> None:
        check_pages(self.scheduler, self.allocator, self.cache)

    @staticmethod
    def samples(
        batch: ScheduleBatch, token: Callable[[Generation], int], finite: Callable[[Generation], bool]
    ) -> StepSamples:
        sampled, ends = batch.sampled, batch.ends
        of_whom = [finite(ends[row]) for row in batch.logit_rows]
        scores = [_unknown(len(each.targets)) for each in batch.scored]
        return StepSamples([token(each) for each in sampled], of_whom, [0.0] * len(sampled), {}, scores=scores)

    @property
    def busy(self) -> bool:
        return bool(self.scheduler.waiting or self.scheduler.running)


def _unknown(targets: int) -> RunScores:
    return RunScores(
        np.zeros(targets, np.float32), np.zeros((targets, 0), np.int32), np.zeros((targets, 0), np.float32)
    )
