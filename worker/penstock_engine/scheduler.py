"""Who runs in each step. Knows tokens, pages and order; never touches a tensor.

    submit ──> waiting ──admit──> running ──┬── finished, failed, aborted: pages to the tree or the allocator
                  ▲                         │
                  └──────── preempt ────────┘   recomputed later, mostly from the prefix cache

Every running generation that decodes gets one token of the step's budget, in policy order; when pages run out, the
last in that order is preempted, so the first always advances and nothing deadlocks. What is left of the budget goes
to chunks of running prefills, then to admissions, in the waiting queue's own order (see `waiting`). Admission takes
all pages of the tokens known so far, so a prefill never waits for pages halfway. Who begins with what another is just
computing waits for that; who is to compute just the same is sampled beside the other, and runs no token (see `reuse`).
"""

from bisect import insort
from math import inf
from operator import attrgetter

from penstock_engine.batch import ScheduleBatch, StepSamples
from penstock_engine.config import Policy
from penstock_engine.fairness import INPUT_COST, OUTPUT_COST, VirtualCounters
from penstock_engine.page_allocator import PageAllocator
from penstock_engine.radix_cache import PrefixCache, TreeNode
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
        self._allocator = allocator
        self._cache = cache
        self._tables = tables
        self._page_size = tables.page_size
        self._counters = VirtualCounters(fair_quantum)
        self.waiting = WaitingQueue(self._counters)
        self.running: list[Generation] = []  # by class, priority, deadline, age
        self._lent: dict[Generation, None] = {}  # twins that wait, with a row and a page for this step
        self._next_deadline = inf  # none that waits or runs has an earlier one
        self.blocked = False  # the last step ended with someone waiting for pages
        self.cached_tokens = 0
        self.computed_tokens = 0
        self.recomputed_tokens = 0
        self.queried_tokens = self.found_tokens = 0  # of those let in for the first time: all, and what was cached
        self.preemptions = 0

    @property
    def free_slots(self) -> int:
        """How many more requests would be let in now."""
        return 0 if self.blocked else max(0, self._max_running - len(self.running) - len(self.waiting))

    def submit(self, generation: Generation) -> None:
        self.waiting.add(generation)
        if generation.request.deadline is not None:
            self._next_deadline = min(self._next_deadline, generation.request.deadline)

    def schedule(self) -> ScheduleBatch:
        """Choose the step's tokens. Nothing advances until `commit`: a step that failed is chosen again."""
        for twin in [*self._lent]:
            self._take_back(twin)
        batch = ScheduleBatch(self._budget_now)
        self._add_decodes(batch)
        self._add_prefills(batch)
        self._admit(batch)
        batch.copies = [copy for each in batch.generations if (copy := each.pending_copy)]
        return batch

    def commit(self, batch: ScheduleBatch, samples: StepSamples) -> None:
        """Take what the model computed into account; fills the batch's deltas, failures and dirty pages."""
        sampled = batch.sampled
        tails = {twin: leader.pages[-1] for twin, leader in batch.twins}
        for generation, extend_len in zip(batch.generations, batch.extend_lens, strict=True):
            self.recomputed_tokens += generation.advance(extend_len)
            self._forget_copy(generation)
        self.computed_tokens += sum(batch.extend_lens)
        self._budget_now = min(self._token_budget, self._budget_now + 1)
        batch.take_scores(samples)
        for at, generation in enumerate(sampled):
            if generation.row < 0:
                continue  # another choice of its request has failed
            if generation in tails and not samples.finite[at]:
                continue  # its leader's failure, until it has tried for itself
            if problem := samples.problem_at(at, generation.output_len):
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
        """Drop every choice of a request, or one of them; what it computed stays in the prefix cache."""

        def meant(each: Generation) -> bool:
            return each.request.id == request_id and choice in (None, each.choice)

        gone = [each for each in self.waiting if meant(each)]
        for generation in gone:
            self._drop(generation)
        for generation in [each for each in self.running if meant(each)]:
            self._leave(generation)
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
            elif self._try_admit(generation):
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

        That is one step, no more: prefills that run have taken their tokens before anyone is let in with what is left,
        so each of them ends in this step.
        """
        if not self._shares or all(each.published for each in self.running):
            return None
        return leader_of(generation, self.running, self._cached_len(generation), self._page_size)

    def _pair(self, generation: Generation, leader: Generation, batch: ScheduleBatch) -> bool:
        """Have `generation` sampled beside `leader`; False, and it waits on, if there is no page for its tail.

        It is lent that page and a row, and let in by `commit`; if the step fails, it merely waits behind `leader`.
        """
        self.waiting.park(generation, behind=leader)
        needed = 1 if len(generation.tokens) % self._page_size else 0
        if not self._can_take(needed + len(batch.twins) + 1):  # a page of growth for each twin too
            return False
        batch.twins.append((generation, leader))
        generation.pages = self._take(needed)
        self._tables.admit(generation)
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
        self._cache.lock(match.node)
        batch.tail_copies += [(tail, page) for page in twin.pages]
        self._start(twin, Prefix(match.node, match.pages, part_len=tail_len), twin.pages)
        self._tables.set_pages(twin, 0)
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
                return self._max_running - len(self.running)
            case "static":
                return 0 if self.running else self._max_running
            case "request":
                return 0 if self.running else 1

    def _try_admit(self, generation: Generation) -> bool:
        """Lock what is cached of the tokens, take pages for the others; False, changing nothing, if they lack.

        The last token always runs: its logits are what the next one is drawn from. So do those whose logits score.
        """
        prefix = self._prefix_of(generation)
        self._cache.lock(prefix.node)
        self._keep(prefix.holder)
        needed = self._pages_of(len(generation.tokens)) - len(prefix.pages)
        if isinstance(prefix.holder, TreeNode) and not self._can_take(needed):
            self._let_go(prefix.holder)  # the page to copy from may be the very one that is lacking
            prefix = prefix.without_part()
        if not self._can_take(needed):
            self._cache.unlock(prefix.node)
            return False
        self._start(generation, prefix, self._take(needed))
        self._tables.admit(generation)
        return True

    def _start(self, generation: Generation, prefix: Prefix, own: list[int]) -> None:
        """The tree keeps `prefix.pages`, which the generation reads; `own` are its own."""
        generation.node, generation.shared_pages = prefix.node, len(prefix.pages)
        generation.copy_from, generation.copy_page = prefix.holder, prefix.part_page
        generation.pages = prefix.pages + own
        generation.cached_len = generation.computed_len = prefix.tokens(self._page_size)
        generation.published = False
        self.cached_tokens += generation.cached_len

    def _has_page_for_next(self, generation: Generation, batch: ScheduleBatch) -> bool:
        """See to it that the next token has a slot, at the cost of those last in order; False if that is itself."""
        if generation.computed_len < len(generation.pages) * self._page_size:
            return True
        while not self._available:
            victim = self.running[-1]
            self._preempt(victim, batch)
            if victim is generation:
                return False
        generation.pages += self._take(1)
        self._tables.set_pages(generation, len(generation.pages) - 1)
        return True

    def _preempt(self, generation: Generation, batch: ScheduleBatch) -> None:
        self._leave(generation)
        generation.preemptions += 1
        self.preemptions += 1
        batch.preempted.append(generation)
        self.waiting.add(generation)

    def _append(self, generation: Generation, at: int, samples: StepSamples, batch: ScheduleBatch) -> None:
        token = samples.token_ids[at]
        if not generation.published:
            self._publish(generation)
        generation.tokens.append(token)
        self._charge(generation, OUTPUT_COST)
        reason = generation.finish_reason_after(token)
        batch.deltas.append(samples.delta(at, generation, reason))
        if reason is not None:
            self._leave(generation)

    def fail(self, generation: Generation, batch: ScheduleBatch, code: str, problem: str) -> None:
        """End one that runs, whose K and V cannot be trusted: its own pages are zeroed, and not for the tree.

        The request's other choices go with it, in the same way.
        """
        request = generation.request
        batch.failures.append(RequestFailure(request.id, generation.choice, code, f"request {request.id!r}: {problem}"))
        for each in [each for each in self.running if each.request is request]:
            batch.dirty_pages += each.pages[each.shared_pages :]
            self._leave(each, publish=False)
        for each in [each for each in self.waiting if each.request is request]:
            self._drop(each)

    def _drop(self, generation: Generation) -> None:
        """One that waits."""
        self.waiting.remove(generation)
        if generation in self._lent:
            self._take_back(generation)

    def _take_back(self, twin: Generation) -> None:
        """What it was lent for a step that came to nothing."""
        del self._lent[twin]
        self._allocator.give_back(twin.pages)
        twin.pages = []
        self._tables.release(twin)

    def _publish(self, generation: Generation) -> None:
        """Hand the full pages computed so far to the tree, and read on from the tree's own.

        before: [ tree's, locked by node | own, full | own, in part ]
        after:  [ tree's, locked by the deeper node  | own, in part ]   duplicates of what the tree had: freed
        """
        full = generation.computed_len // self._page_size
        known = generation.tokens[: full * self._page_size]
        node, pages, duplicates = self._cache.insert(generation.request.namespace, known, generation.pages[:full])
        self._cache.lock(node)
        self._cache.unlock(generation.node)
        generation.node, generation.shared_pages = node, len(pages)
        generation.pages[: len(pages)] = pages
        generation.published = True
        self._allocator.give_back(duplicates)
        self._tables.set_pages(generation, 0)
        self.waiting.unpark(generation)

    def _leave(self, generation: Generation, publish: bool = True) -> None:
        """Out of `running`: full pages to the tree, the others to the allocator, all locks undone."""
        self.running.remove(generation)
        for each in self.running:
            if each.copy_from is generation:
                self._compute_instead(each)
        if publish:
            self._publish(generation)
        self._allocator.give_back(generation.pages[generation.shared_pages :])
        self._cache.unlock(generation.node)
        self._forget_copy(generation)
        self._tables.release(generation)
        self.waiting.unpark(generation)
        generation.node, generation.pages, generation.shared_pages = None, [], 0
        generation.computed_len = generation.cached_len = 0

    def _forget_copy(self, generation: Generation) -> None:
        self._let_go(generation.copy_from)
        generation.copy_from = None

    def _compute_instead(self, generation: Generation) -> None:
        """Who was to copy from one that leaves before it was done, after a step that failed, runs that part itself."""
        whole = generation.shared_pages * self._page_size
        self.cached_tokens -= generation.cached_len - whole
        generation.cached_len = generation.computed_len = whole
        generation.copy_from = None

    def _keep(self, holder: TreeNode | Generation | None) -> None:
        """A page of the tree is locked; one that runs keeps its page until it leaves, and tells us then."""
        if isinstance(holder, TreeNode):
            self._cache.lock(holder)

    def _let_go(self, holder: TreeNode | Generation | None) -> None:
        if isinstance(holder, TreeNode):
            self._cache.unlock(holder)

    @property
    def _available(self) -> int:
        return self._allocator.free_count + self._cache.evictable_count

    def _can_take(self, count: int) -> bool:
        """Leave a page of growth to each that runs, so that admitting one does not preempt another at once."""
        return count + len(self.running) <= self._available

    def _take(self, count: int) -> list[int]:
        lacking = count - self._allocator.free_count
        if lacking > 0:
            self._allocator.give_back(self._cache.evict(lacking))
        return self._allocator.take(count)

    def _pages_of(self, tokens: int) -> int:
        return -(-tokens // self._page_size)
