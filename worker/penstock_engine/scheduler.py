"""Who runs in each step. Knows tokens, pages and order; never touches a tensor.

    submit ──> waiting ──admit──> running ──┬── finished, failed, aborted: pages to the tree or the allocator
                  ▲                         │
                  └──────── preempt ────────┘   recomputed later, mostly from the prefix cache

Every running generation that decodes gets one token of the step's budget, in policy order; when pages run out, the
last in that order is preempted, so the first always advances and nothing deadlocks. What is left of the budget goes
to chunks of running prefills, then to admissions, in the waiting queue's own order (see `waiting`). Admission takes
all pages of the tokens known so far, so a prefill never waits for pages halfway. Who begins with what another is just
computing waits for that; who is to compute just the same is sampled beside the other, and runs no token (see `reuse`).

A step may be scheduled while the one before is in flight: whoever that one samples decodes one token more, whichever it
is. Then nobody is preempted, and who leaves keeps row and pages until the last step that may run it has ended.
"""

from bisect import insort
from math import inf
from operator import attrgetter

from penstock_engine.batch import ScheduleBatch, StepSamples
from penstock_engine.config import Policy
from penstock_engine.fairness import INPUT_COST, OUTPUT_COST, VirtualCounters
from penstock_engine.flights import Flights
from penstock_engine.holdings import Holdings
from penstock_engine.page_allocator import PageAllocator
from penstock_engine.radix_cache import PrefixCache
from penstock_engine.request import Generation, RequestFailure
from penstock_engine.reuse import Prefix, find_prefix, leader_of, twin_of
from penstock_engine.tables import RowTables
from penstock_engine.waiting import WaitingQueue

_ORDER = attrgetter("order")


class Scheduler:
    """Owns the waiting and running lists, and every page that is not free."""

    def __init__(
        self,
        *,
        max_running: int,
        token_budget: int,
        policy: Policy,
        allocator: PageAllocator,
        cache: PrefixCache,
        tables: RowTables,
        fair_quantum: int = 1024,
    ) -> None:
        self._max_running = max_running
        self._token_budget = self._budget_now = token_budget
        self._policy = policy
        self._cache = cache
        self._page_size = tables.page_size
        self._counters = VirtualCounters(fair_quantum)
        self.waiting = WaitingQueue(self._counters)
        self.running: list[Generation] = []  # by class, priority, deadline, age
        self._lent: dict[Generation, None] = {}  # twins that wait, with a row and a page for one step
        self._flights = Flights()
        self._holdings = Holdings(allocator, cache, tables, self._flights, self.running)
        self._next_deadline = inf  # none that waits or runs has an earlier one
        self.blocked = False  # the last step ended with someone waiting for pages
        self.computed_tokens = 0
        self.recomputed_tokens = 0
        self.queried_tokens = self.found_tokens = 0  # of those let in for the first time: all, and what was cached
        self.preemptions = 0

    @property
    def cached_tokens(self) -> int:
        """Found in the prefix cache at admissions, rather than computed."""
        return self._holdings.cached_tokens

    @property
    def free_slots(self) -> int:
        """How many more requests would be let in now."""
        return 0 if self.blocked else max(0, self._max_running - len(self.running) - len(self.waiting))

    def submit(self, generation: Generation) -> None:
        self.waiting.add(generation)
        if generation.request.deadline is not None:
            self._next_deadline = min(self._next_deadline, generation.request.deadline)

    def schedule(self) -> ScheduleBatch:
        """Choose the next step's tokens. Nothing advances until it is `launched`; one that is not is chosen again."""
        for twin in [each for each in self._lent if not each.awaited]:
            self._take_back(twin)
        batch = ScheduleBatch(self._budget_now)
        self._add_decodes(batch)
        self._add_prefills(batch)
        self._admit(batch)
        batch.copies = [copy for each in batch.generations if (copy := each.pending_copy)]
        return batch

    @property
    def can_run_ahead(self) -> bool:
        """Whether a step can be scheduled while one is in flight: there are pages for all that decode."""
        full = (each for each in self.running if each.remaining_len == 1 and self._holdings.is_full(each))
        return sum(1 for _ in full) <= self._holdings.available

    def launched(self, batch: ScheduleBatch) -> None:
        """`batch` is in flight, until `commit` or `retract`: what is scheduled from now on comes behind it."""
        self._flights.begin(batch)

    def retract(self, batch: ScheduleBatch) -> None:
        """The latest step in flight came to nothing: its tokens are to be run again."""
        self._flights.undo(batch)
        for generation in batch.left:
            generation.spoiled = True
        batch.dirty_pages += self._holdings.release_left(batch)
        batch.drop_ended()

    def commit(self, batch: ScheduleBatch, samples: StepSamples) -> None:
        """Take what the model computed into account; fills the batch's deltas, failures and dirty pages.

        Who has ended since it was scheduled is left out.
        """
        sampled = batch.sampled
        tails = {twin: leader.pages[(len(twin.tokens) - 1) // self._page_size] for twin, leader in batch.twins}
        self._flights.end(batch)
        batch.take_scores(samples)
        batch.drop_ended()
        for generation, extend_len in zip(batch.generations, batch.extend_lens, strict=True):
            self.recomputed_tokens += generation.settle(extend_len)
            self._holdings.forget_copy(generation)
        self.computed_tokens += sum(batch.extend_lens)
        self._budget_now = min(self._token_budget, self._budget_now + 1)
        for at, generation in enumerate(sampled):
            self._take_sample(generation, at, tails, samples, batch)
        for twin in [twin for twin, _ in batch.twins if twin in self._lent]:
            self._take_back(twin)
        batch.dirty_pages += self._holdings.release_left(batch)

    def _take_sample(
        self, generation: Generation, at: int, tails: dict[Generation, int], samples: StepSamples, batch: ScheduleBatch
    ) -> None:
        if generation.ended:
            generation.spoiled |= not samples.finite[at]  # what ran in vain was stored all the same
        elif generation in tails and not samples.finite[at]:
            return  # its leader's failure, until it has tried for itself
        elif problem := samples.problem_at(at, generation.output_len):
            self.fail(generation, batch, *problem)
        elif generation not in tails or self._join(generation, tails[generation], batch):
            self._append(generation, at, samples, batch)

    def expire(self, now: float, batch: ScheduleBatch) -> None:
        """End every request whose deadline is `now` or was; what it computed stays in the prefix cache."""
        if now < self._next_deadline:
            return
        requests = {each.request.id: each.request for each in (*self.waiting, *self.running)}.values()
        late = [each for each in requests if each.deadline is not None and each.deadline <= now]
        for request in late:
            self.abort(request.id)
            message = f"request {request.id!r}: not finished by its deadline, {request.deadline}"
            batch.failures.append(RequestFailure(request.id, 0, "deadline_exceeded", message))
        ahead = (each.deadline for each in requests if each.deadline is not None and each.deadline > now)
        self._next_deadline = min(ahead, default=inf)

    def shrink(self) -> None:
        """Memory lacked: steps of half the tokens from now on, then a token more in each that goes well."""
        self._budget_now = max(self._max_running, self._budget_now // 2)

    def abort(self, request_id: str, choice: int | None = None) -> bool:
        """Drop every choice of a request, or one of them; what it computed stays in the prefix cache.

        What a step in flight says of them is not heard; their pages are free once it has ended.
        """

        def meant(each: Generation) -> bool:
            return each.request.id == request_id and choice in (None, each.choice)

        gone = [each for each in self.waiting if meant(each)]
        for generation in gone:
            self._drop(generation)
        for generation in [each for each in self.running if meant(each)]:
            self._end(generation)
            gone.append(generation)
        self.blocked = self.blocked and not gone
        return bool(gone)

    def _add_decodes(self, batch: ScheduleBatch) -> None:
        at = 0
        while at < len(self.running):  # shrinks from its end while we go
            generation = self.running[at]
            if generation.remaining_len == 1 and self._has_page_for_next(generation, batch):
                batch.add(generation, 1)
            at += 1

    def _add_prefills(self, batch: ScheduleBatch) -> None:
        for generation in self.running:
            if batch.budget and generation.remaining_len > 1:
                batch.add(generation, min(generation.remaining_len, batch.budget))

    def _admit(self, batch: ScheduleBatch) -> None:
        self.blocked = False
        slots = self._open_slots()
        while slots and (batch.budget or batch.ending) and (generation := self.waiting.first(self._cached_len)):
            if self._shares and (twin := twin_of(generation, batch)):
                slots -= self._pair(generation, twin, batch)
            elif not batch.budget:
                return
            elif leader := self._leader_of(generation):
                self.waiting.park(generation, behind=leader)
            elif self._holdings.try_start(generation, self._prefix_of(generation)):
                self._enter(generation, batch)
                batch.add(generation, min(generation.remaining_len, batch.budget))
                slots -= 1
            else:
                self.blocked = True
                return

    @property
    def _shares(self) -> bool:
        """One may wait for what another computes; where a batch is let in as a whole, it cannot wait for its own."""
        return self._policy == "continuous" and self._cache.remembers

    def _leader_of(self, generation: Generation) -> Generation | None:
        """Who is computing a beginning that `generation` has too, and would soon share: it waits for that.

        That is one step, or two where steps overlap: prefills that run have taken their tokens before anyone is let in
        with what is left, so each of them ends in this step.
        """
        if not self._shares or all(each.published for each in self.running):
            return None
        return leader_of(generation, self.running, self._cached_len(generation), self._page_size)

    def _pair(self, generation: Generation, leader: Generation, batch: ScheduleBatch) -> bool:
        """Have `generation` sampled beside `leader`; False, and it waits on, if there is no page for its tail.

        It is lent that page and a row for the step, at whose end `commit` lets it in; till then it waits behind itself.
        """
        needed = 1 if len(generation.tokens) % self._page_size else 0
        if not self._holdings.can_take(needed + len(batch.twins) + 1):  # a page of growth for each twin too
            self.waiting.park(generation, behind=leader)
            return False
        self.waiting.park(generation, behind=generation)
        batch.twins.append((generation, leader))
        self._holdings.lend(generation, needed)
        self._lent[generation] = None
        return True

    def _join(self, twin: Generation, tail: int, batch: ScheduleBatch) -> bool:
        """Let `twin` run from behind its last token, with the leader's full pages and a copy of its page `tail`.

        False, and it waits on, if those pages are not in the tree: the leader has failed by a grammar of its own.
        """
        match = self._cache.match(twin.request.namespace, twin.tokens)
        tail_len = len(twin.tokens) - len(match.pages) * self._page_size
        if tail_len >= self._page_size:
            return False
        del self._lent[twin]
        batch.tail_copies += [(tail, page) for page in twin.pages]
        self._holdings.keep_lent(twin, Prefix(match.node, match.pages, part_len=tail_len))
        self._enter(twin, batch)
        return True

    def _enter(self, generation: Generation, batch: ScheduleBatch) -> None:
        self.waiting.admit(generation)
        insort(self.running, generation, key=_ORDER)
        batch.entered.append((generation, generation.cached_len))
        if not generation.preemptions:
            generation.found_len = generation.cached_len
            self.queried_tokens += len(generation.tokens)
            self.found_tokens += generation.cached_len
            batch.admitted.append((generation.request.id, min(generation.cached_len, generation.prompt_len)))
            self._charge(generation, INPUT_COST * max(0, generation.prompt_len - generation.cached_len))

    def _charge(self, generation: Generation, cost: int) -> None:
        """Recomputing after a preemption is our doing, and charged to nobody."""
        self._counters.charge(generation.request.tenant, cost, generation.request.weight)

    def _prefix_of(self, generation: Generation) -> Prefix:
        return find_prefix(self._cache, self.running, generation, self._page_size)

    def _cached_len(self, generation: Generation) -> int:
        return self._prefix_of(generation).tokens(self._page_size)

    def _open_slots(self) -> int:
        match self._policy:
            case "continuous":
                return self._holdings.free_rows
            case "static":
                return 0 if self.running or self._flights else self._max_running
            case "request":
                return 0 if self.running or self._flights else 1

    def _has_page_for_next(self, generation: Generation, batch: ScheduleBatch) -> bool:
        """See to it that the next token has a slot, at the cost of those last in order; False if that is itself."""
        if not self._holdings.is_full(generation):
            return True
        assert self._holdings.available or not self._flights, "who is preempted must not be in flight"
        while not self._holdings.available:
            victim = self.running[-1]
            self._preempt(victim, batch)
            if victim is generation:
                return False
        self._holdings.grow(generation)
        return True

    def evacuate(self) -> None:
        """Preempt all that run and give up what is cached, so that every page is free. Nothing may be in flight."""
        assert not self._flights, "a step in flight reads pages"
        for twin in [*self._lent]:
            self._take_back(twin)
        for generation in [*self.running]:
            self._suspend(generation)
        self._holdings.forget_cached()
        self.blocked = False

    def _preempt(self, generation: Generation, batch: ScheduleBatch) -> None:
        self._suspend(generation)
        batch.preempted.append(generation)

    def _suspend(self, generation: Generation) -> None:
        self._leave(generation)
        generation.preemptions += 1
        self.preemptions += 1
        self.waiting.add(generation)

    def _append(self, generation: Generation, at: int, samples: StepSamples, batch: ScheduleBatch) -> None:
        token = samples.token_ids[at]
        if not generation.published:
            self._holdings.publish(generation)
            self.waiting.unpark(generation)
        generation.tokens.append(token)
        self._charge(generation, OUTPUT_COST)
        reason = generation.finish_reason_after(token)
        batch.deltas.append(samples.delta(at, generation, reason))
        if reason is not None:
            self._end(generation)

    def fail(self, generation: Generation, batch: ScheduleBatch, code: str, problem: str) -> None:
        """End one that runs, whose K and V cannot be trusted: its own pages are zeroed, and not for the tree.

        The request's other choices go with it, in the same way.
        """
        request = generation.request
        batch.failures.append(RequestFailure(request.id, generation.choice, code, f"request {request.id!r}: {problem}"))
        for each in [each for each in self.running if each.request is request]:
            each.spoiled = True
            self._end(each, publish=False)
        for each in [each for each in self.waiting if each.request is request]:
            self._drop(each)
        batch.dirty_pages += self._holdings.take_dirty()

    def _drop(self, generation: Generation) -> None:
        """End one that waits."""
        generation.ended = True
        self.waiting.remove(generation)
        if generation in self._lent:
            del self._lent[generation]
            self._holdings.part_with(generation)

    def _take_back(self, twin: Generation) -> None:
        """What it was lent for a step that came to nothing."""
        del self._lent[twin]
        self.waiting.unpark(twin)
        self._holdings.release(twin)

    def _end(self, generation: Generation, publish: bool = True) -> None:
        generation.ended = True
        self._leave(generation, publish)

    def _leave(self, generation: Generation, publish: bool = True) -> None:
        """Out of `running`: full pages to the tree, and what else it has to whoever may come."""
        self.running.remove(generation)
        if publish:
            self._holdings.publish(generation)
        self.waiting.unpark(generation)
        self._holdings.part_with(generation)
