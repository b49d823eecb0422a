"""Who runs in each step. Knows tokens, pages and order; never touches a tensor.

    submit ──> waiting ──admit──> running ──┬── finished, failed, aborted: pages to the tree or the allocator
                  ▲                         │
                  └──────── preempt ────────┘   recomputed later, mostly from the prefix cache

Every running generation that decodes gets one token of the step's budget, in policy order; when pages run out, the
last in that order is preempted, so the first always advances and nothing deadlocks. What is left of the budget goes
to chunks of running prefills, then to admissions, in the waiting queue's own order (see `waiting`). Admission takes
all pages of the tokens known so far, so a prefill never waits for pages halfway. Who begins with what another is just
computing waits for that one's pages rather than compute them again.
"""

from bisect import insort
from math import inf
from operator import attrgetter

from penstock_engine.batch import RunScores, ScheduleBatch, StepSamples
from penstock_engine.config import Policy
from penstock_engine.fairness import INPUT_COST, OUTPUT_COST, VirtualCounters
from penstock_engine.page_allocator import PageAllocator
from penstock_engine.radix_cache import Match, PrefixCache, common_len
from penstock_engine.request import FinishReason, Generation, PromptLogprobs, RequestFailure, TokenDelta
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
        batch = ScheduleBatch(self._budget_now)
        self._add_decodes(batch)
        self._add_prefills(batch)
        self._admit(batch)
        batch.copies = [copy for each in batch.generations if (copy := each.pending_copy)]
        return batch

    def commit(self, batch: ScheduleBatch, samples: StepSamples) -> None:
        """Take what the model computed into account; fills the batch's deltas, failures and dirty pages."""
        sampled = batch.sampled
        for generation, extend_len in zip(batch.generations, batch.extend_lens, strict=True):
            self.recomputed_tokens += generation.advance(extend_len)
            self._forget_copy(generation)
        self.computed_tokens += sum(batch.extend_lens)
        self._budget_now = min(self._token_budget, self._budget_now + 1)
        for run, scores in zip(batch.scored, samples.scores, strict=True):
            self._take_scores(batch.generations[run.at], scores, batch)
        for at, generation in enumerate(sampled):
            if generation.row < 0:
                continue  # another choice of its request has failed
            if not samples.finite[at]:
                problem = f"the model's output is not finite at position {generation.output_len}"
                self.fail(generation, batch, "logits_not_finite", problem)
            elif at in samples.broken_grammars:
                problem = f"its grammar cannot go on at position {generation.output_len}: {samples.broken_grammars[at]}"
                self.fail(generation, batch, "grammar_failed", problem)
            else:
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

    def abort(self, request_id: str) -> bool:
        """Drop every generation of a request; what it computed stays in the prefix cache."""
        gone = [each for each in self.waiting if each.request.id == request_id]
        for generation in gone:
            self.waiting.remove(generation)
        for generation in [each for each in self.running if each.request.id == request_id]:
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
        while slots and batch.budget and (generation := self.waiting.first(self._cached_len)):
            if leader := self._leader_of(generation):
                self.waiting.park(generation, behind=leader)
            elif self._try_admit(generation):
                self._enter(generation, batch)
                slots -= 1
            else:
                self.blocked = True
                return

    def _leader_of(self, generation: Generation) -> Generation | None:
        """Who is computing a beginning that `generation` has too, and would soon share: it waits for that.

        That is one step, no more: prefills that run have taken their tokens before anyone is let in with what is left,
        so each of them ends in this step. A batch that is let in as a whole cannot wait for one of its own.
        """
        if self._policy != "continuous" or not self._cache.remembers:
            return None
        known = generation.tokens[:-1]
        for leader in self.running:
            shared = 0 if leader.published else self._shared_len(leader, generation.request.namespace, known)
            if shared and shared - self._cached_len(generation) >= self._page_size:
                return leader
        return None

    def _shared_len(self, leader: Generation, namespace: str, tokens: list[int]) -> int:
        """How much of `tokens` lies in the pages that `leader` will fill."""
        size = self._page_size
        if leader.request.namespace != namespace or leader.tokens[:size] != tokens[:size]:
            return 0
        return common_len(leader.tokens[: len(leader.tokens) // size * size], tokens)

    def _enter(self, generation: Generation, batch: ScheduleBatch) -> None:
        self.waiting.admit(generation)
        insort(self.running, generation, key=_ORDER)
        batch.entered.append((generation, generation.cached_len))
        if not generation.preemptions:
            generation.found_len = generation.cached_len
            self.queried_tokens += len(generation.tokens)
            self.found_tokens += generation.cached_len
            batch.admitted.append((generation.request.id, min(generation.cached_len, generation.prompt_len)))
            self._charge(generation, INPUT_COST * generation.prompt_len)
        batch.add(generation, min(generation.remaining_len, batch.budget))

    def _charge(self, generation: Generation, cost: int) -> None:
        """Recomputing after a preemption is our doing, and charged to nobody."""
        self._counters.charge(generation.request.tenant, cost, generation.request.weight)

    def _cached_len(self, generation: Generation) -> int:
        match = self._cache.match(generation.request.namespace, generation.reusable)
        return len(match.pages) * self._page_size + match.partial_len

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
        match = self._cache.match(generation.request.namespace, generation.reusable)
        self._cache.lock(match.node)
        self._cache.lock(match.partial)
        needed = self._pages_of(len(generation.tokens)) - len(match.pages)
        if match.partial and not self._can_take(needed):
            self._cache.unlock(match.partial)  # the page to copy from may be the very one that is lacking
            match = match._replace(partial=None, partial_len=0)
        if not self._can_take(needed):
            self._cache.unlock(match.node)
            return False
        self._start(generation, match, needed)
        return True

    def _start(self, generation: Generation, match: Match, needed: int) -> None:
        """The tree keeps `match.pages`, which the generation reads; the `needed` new ones are its own."""
        generation.node, generation.shared_pages = match.node, len(match.pages)
        generation.copy_from = match.partial
        generation.pages = match.pages + self._take(needed)
        generation.cached_len = len(match.pages) * self._page_size + match.partial_len
        generation.computed_len = generation.cached_len
        generation.published = False
        self.cached_tokens += generation.cached_len
        self._tables.admit(generation)

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
        batch.deltas.append(self._delta(generation, at, samples, reason))
        if reason is not None:
            self._leave(generation)

    @staticmethod
    def _take_scores(generation: Generation, scores: RunScores, batch: ScheduleBatch) -> None:
        scoring = generation.scoring
        assert scoring is not None  # it was when this step was chosen
        scoring.logprobs += scores.logprobs
        scoring.top_logprobs += scores.top_logprobs
        if not scoring.lacking:
            found = PromptLogprobs(generation.request.id, scoring.start, scoring.logprobs, scoring.top_logprobs)
            batch.prompt_logprobs.append(found)
            generation.scoring = None

    @staticmethod
    def _delta(generation: Generation, at: int, samples: StepSamples, reason: FinishReason | None) -> TokenDelta:
        request = generation.request
        return TokenDelta(
            request.id,
            generation.choice,
            generation.output_len - 1,
            samples.token_ids[at],
            samples.logprobs[at] if request.sampling.logprobs is not None else None,
            reason,
            samples.top_logprobs.get(at, ()),
        )

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
            self.waiting.remove(each)

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
        if generation.copy_from is not None:
            self._cache.unlock(generation.copy_from)
            generation.copy_from = None

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
