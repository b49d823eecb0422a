"""A scheduler with made-up tokens for a model: its pages, its cache, and a check of both after every step."""

from collections.abc import Callable

from penstock_engine.admission import Limits, admitted
from penstock_engine.batch import ScheduleBatch, StepSamples
from penstock_engine.config import Policy
from penstock_engine.page_allocator import PageAllocator
from penstock_engine.radix_cache import NoCache, PrefixCache, RadixCache
from penstock_engine.request import Request, TokenDelta
from penstock_engine.scheduler import Scheduler
from penstock_engine.tables import RowTables

from tests.engine.driving import check_pages

PAGE, VOCABULARY = 4, 5


class House:
    """A scheduler, its pages and cache, and a model that says `token(generation)`."""

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
        self.scheduler = Scheduler(
            max_running=max_running,
            token_budget=budget,
            policy=policy,
            allocator=self.allocator,
            cache=self.cache,
            tables=RowTables(max_running, pages, PAGE),
            fair_quantum=quantum,
        )
        self.arrivals = 0
        self.last: ScheduleBatch | None = None

    def submit(self, request: Request) -> None:
        (generation,) = generations_of(request, self.limits, arrival=self.arrivals, drawn_seed=0)
        self.arrivals += 1
        self.scheduler.submit(generation)

    def step(self, token: Callable[[], int] = lambda: 0, *, finite: bool = True) -> list[TokenDelta]:
        batch = self.last = self.scheduler.schedule()
        assert sum(batch.extend_lens) <= self.budget
        assert len(self.scheduler.running) <= self.max_running
        assert batch.generations or not (self.scheduler.waiting or self.scheduler.running), "nothing moves"
        count = len(batch.sampled)
        samples = StepSamples([token() for _ in range(count)], [finite] * count, [0.0] * count, {})
        self.scheduler.commit(batch, samples)
        check_pages(self.scheduler, self.allocator, self.cache)
        return batch.deltas

    @property
    def busy(self) -> bool:
        return bool(self.scheduler.waiting or self.scheduler.running)
