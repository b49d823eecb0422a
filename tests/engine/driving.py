"""Running an engine in a test, with its books checked after every step."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from penstock_engine import Engine, Request, RequestFailure, SamplingParams, StepCounts, TokenDelta
from penstock_engine.page_allocator import PageAllocator
from penstock_engine.radix_cache import RadixCache, TreeNode
from penstock_engine.request import Generation
from penstock_engine.scheduler import Scheduler

from tests.engine.tiny import TinyModel


@dataclass
class Run:
    """What came out: deltas by request, failures, each step's counts, and the cached tokens of those that began."""

    deltas: dict[str, list[TokenDelta]] = field(default_factory=dict)
    failed: list[RequestFailure] = field(default_factory=list)
    steps: list[StepCounts] = field(default_factory=list)
    admitted: list[tuple[str, int]] = field(default_factory=list)

    def tokens(self, request_id: str) -> list[int]:
        return [delta.token_id for delta in self.deltas[request_id]]

    def finish_reason(self, request_id: str) -> str | None:
        return self.deltas[request_id][-1].finish_reason


def greedy(max_tokens: int = 20, **others: object) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, **others)  # type: ignore[arg-type]


def run_all(engine: Engine, requests: Iterable[Request] = ()) -> Run:
    """Submit `requests` and step until nothing is left."""
    for request in requests:
        engine.submit(request)
    run = Run()
    while engine.has_work:
        step_once(engine, run)
    return run


def step_once(engine: Engine, run: Run) -> None:
    output = engine.step()
    run.failed += output.failed
    run.steps.append(output.counts)
    run.admitted += output.admitted
    for delta in output.deltas:
        positions = run.deltas.setdefault(delta.request_id, [])
        assert not positions or delta.position == positions[-1].position + 1
        positions.append(delta)
    check_pages(engine._scheduler, engine._allocator, engine._cache)
    stats = engine.stats()
    assert stats.pages_free + stats.pages_cached + stats.pages_in_use == stats.pages_total


def check_pages(scheduler: Scheduler, allocator: PageAllocator, cache: object) -> None:
    """Every page is free, in the tree, or owned by exactly one generation that runs, or that a step in flight may run.

    Locks are those of such.
    """
    flights = scheduler._flights._batches
    here = [*scheduler.running, *(each for batch in flights for each in batch.left)]
    own = [page for each in here for page in each.own_pages]
    own += [page for each in scheduler._lent for page in each.pages]
    own += [page for batch in flights for page in batch.spare_pages]
    tree = list(cache.nodes()) if isinstance(cache, RadixCache) else []
    in_tree = [page for node in tree for page in node.pages]
    unlocked = [page for node in tree if node.lock_count == 0 for page in node.pages]
    everything = sorted([*allocator._free, *own, *in_tree])
    assert everything == list(range(1, allocator.total + 1))
    if isinstance(cache, RadixCache):
        assert cache.evictable_count == len(unlocked)
        assert cache.page_count == len(in_tree)
        shared = {page for each in here for page in each.pages[: each.shared_pages]}
        copied = {each.copy_page for each in here if isinstance(each.copy_from, TreeNode)}
        assert shared | copied <= set(in_tree) - set(unlocked)
        sources = {each.copy_from for each in here if isinstance(each.copy_from, Generation)}
        assert sources <= set(here)
        if not here:
            assert len(unlocked) == len(in_tree)


@dataclass(frozen=True)
class Parity:
    """How far a greedy run is from the reference, over all its tokens."""

    tokens: int
    wrong: int
    worst_logprob: float


def parity(model: TinyModel, requests: Iterable[Request], run: Run) -> Parity:
    """Compare every token of a greedy run with what `transformers` would have said there."""
    tokens = wrong = 0
    worst = 0.0
    for request in requests:
        deltas = run.deltas[request.id]
        start = len(request.prompt_ids) + sum(len(ids) for ids in request.output_ids)
        known = [*request.prompt_ids, *(token for ids in request.output_ids for token in ids)]
        expected = model.logprobs([*known, *(delta.token_id for delta in deltas)])[start - 1 : -1]
        for delta, row in zip(deltas, expected, strict=True):
            tokens += 1
            wrong += delta.token_id != int(row.argmax())
            worst = max(worst, abs((delta.logprob or 0.0) - float(row[delta.token_id])))
    return Parity(tokens, wrong, worst)
