"""A scheduler with made-up tokens for a model: its pages, its cache, and a check of all of them after every step."""

from collections.abc import Callable
from itertools import accumulate

from penstock_engine.admission import Limits, admitted
from penstock_engine.batch import RunScores, ScheduleBatch, StepSamples
from penstock_engine.bisection import isolate
from penstock_engine.config import Policy
from penstock_engine.page_allocator import PageAllocator
from penstock_engine.radix_cache import NoCache, PrefixCache, RadixCache
from penstock_engine.request import Generation, Request, TokenDelta
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

    def run(self, batch: ScheduleBatch) -> None:
        self.copy(batch.copies)
        runs = list(zip(batch.generations, batch.extend_lens, strict=True))
        for generation, extend_len in runs:
            for at in range(generation.computed_len, generation.computed_len + extend_len):
                page = self.tables.pages[generation.row, at // PAGE]
                self.slots[page][at % PAGE] = prefix_numbers(generation)[at]
        for generation, extend_len in runs:
            context = generation.computed_len + extend_len
            pages = self.tables.pages[generation.row, : -(-context // PAGE)].tolist()
            held = [number for page in pages for number in self.slots[page]]
            assert held[:context] == prefix_numbers(generation)[:context], "the context of another"


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
        batch = self.last = self.schedule()

        def run(part: ScheduleBatch) -> StepSamples:
            self.pool.run(part)
            if error := fault(part):
                raise error
            return self.samples(part, token, finite)

        def commit(part: ScheduleBatch, samples: StepSamples) -> None:
            self.scheduler.launched(part)
            self.scheduler.commit(part, samples)
            batch.absorb(part)

        def blame(generation: Generation, cause: Exception) -> None:
            self.scheduler.fail(generation, batch, "forward_failed", str(cause))

        try:
            samples = run(batch)
        except (ValueError, MemoryError):
            isolate(batch, run=run, commit=commit, blame=blame)
        else:
            self.scheduler.launched(batch)
            self.scheduler.commit(batch, samples)
        self.pool.copy(batch.tail_copies)
        self.pool.wipe([*batch.dirty_pages, *self.allocator._free])  # what is free may be anybody's by now
        self.scheduler.expire(now, batch)
        self.check()
        return batch.deltas

    def schedule(self) -> ScheduleBatch:
        batch = self.scheduler.schedule()
        assert sum(batch.extend_lens) <= self.budget
        assert len(self.scheduler.running) + len(batch.twins) <= self.max_running
        assert batch.generations or not self.busy, "nothing moves"
        return batch

    def check(self) -> None:
        check_pages(self.scheduler, self.allocator, self.cache)

    @staticmethod
    def samples(
        batch: ScheduleBatch, token: Callable[[Generation], int], finite: Callable[[Generation], bool]
    ) -> StepSamples:
        sampled, ends = batch.sampled, batch.ends
        of_whom = [finite(ends[row]) for row in batch.logit_rows]
        scores = [RunScores([0.0] * len(each.targets), [()] * len(each.targets)) for each in batch.scored]
        return StepSamples([token(each) for each in sampled], of_whom, [0.0] * len(sampled), {}, scores=scores)

    @property
    def busy(self) -> bool:
        return bool(self.scheduler.waiting or self.scheduler.running)
