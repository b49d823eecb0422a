"""What generations hold of the pool: rows, pages, locks in the tree, and copies still to be made.

    start ──► grow ... ──► publish: full pages to the tree ──► part_with: the rest, once no step in flight may use it

The tree's pages are read where they lie, and locked; a generation writes to its own pages alone.
"""

from collections.abc import Sequence

from penstock_engine.batch import ScheduleBatch
from penstock_engine.flights import Flights
from penstock_engine.page_allocator import PageAllocator
from penstock_engine.radix_cache import PrefixCache, TreeNode
from penstock_engine.request import Generation
from penstock_engine.reuse import Prefix
from penstock_engine.tables import RowTables


class Holdings:
    """Gives and takes back. `running` is the scheduler's list: who of it copies from whom is looked up there."""

    def __init__(
        self,
        allocator: PageAllocator,
        cache: PrefixCache,
        tables: RowTables,
        flights: Flights,
        running: Sequence[Generation],
    ) -> None:
        self._allocator = allocator
        self._cache = cache
        self._tables = tables
        self._flights = flights
        self._running = running
        self._page_size = tables.page_size
        self._dirty_pages: list[int] = []
        self.cached_tokens = 0

    @property
    def available(self) -> int:
        """Pages that are free, or could be."""
        return self._allocator.free_count + self._cache.evictable_count

    @property
    def free_rows(self) -> int:
        return self._tables.free_rows

    def can_take(self, count: int) -> bool:
        """Leave a page of growth to each that runs, so that admitting one does not preempt another at once."""
        return count + len(self._running) <= self.available

    def is_full(self, generation: Generation) -> bool:
        """Whether its next token needs another page."""
        return generation.computed_len >= len(generation.pages) * self._page_size

    def grow(self, generation: Generation) -> None:
        """One page more; there must be one."""
        generation.pages += self._take(1)
        self._tables.set_pages(generation, len(generation.pages) - 1)

    def try_start(self, generation: Generation, prefix: Prefix) -> bool:
        """Lock `prefix`, take pages for the tokens after it; False, changing nothing, if they lack."""
        self._cache.lock(prefix.node)
        self._keep(prefix.holder)
        needed = -(-len(generation.tokens) // self._page_size) - len(prefix.pages)
        if isinstance(prefix.holder, TreeNode) and not self.can_take(needed):
            self._let_go(prefix.holder)  # the page to copy from may be the very one that is lacking
            prefix = prefix.without_part()
        if not self.can_take(needed):
            self._cache.unlock(prefix.node)
            return False
        self._start(generation, prefix, self._take(needed))
        self._tables.admit(generation)
        return True

    def lend(self, twin: Generation, pages: int) -> None:
        """A row and `pages` to one that waits; `release` takes them back, if `keep_lent` does not make them its own."""
        twin.pages = self._take(pages)
        self._tables.admit(twin)

    def keep_lent(self, twin: Generation, prefix: Prefix) -> None:
        """Let `twin` run from behind `prefix`, whose part is copied to its page by the caller."""
        self._cache.lock(prefix.node)
        self._start(twin, prefix, twin.pages)
        self._tables.set_pages(twin, 0)

    def publish(self, generation: Generation) -> None:
        """Hand the full pages computed so far to the tree, and read on from the tree's own.

        before: [ tree's, locked by `node` | own, full | own, in part ]
        after:  [ tree's, locked by the deeper node  | own, in part ]   duplicates of what the tree had: freed
        """
        full = generation.settled_len // self._page_size
        known = generation.tokens[: full * self._page_size]
        node, pages, duplicates = self._cache.insert(generation.request.namespace, known, generation.pages[:full])
        self._cache.lock(node)
        self._cache.unlock(generation.node)
        generation.node, generation.shared_pages = node, len(pages)
        generation.pages[: len(pages)] = pages
        generation.published = True
        self._tables.set_pages(generation, 0)
        if self._flights:
            self._flights.latest.spare_pages += duplicates  # which it reads
        else:
            self._allocator.give_back(duplicates)

    def part_with(self, generation: Generation) -> None:
        """Release it, at the end of the latest step in flight: that may run it, or copy a page of it."""
        if self._flights:
            self._flights.latest.left.append(generation)
        else:
            self.release(generation)

    def release_left(self, batch: ScheduleBatch) -> list[int]:
        """`batch` is in flight no more. Returns the pages that are to be zeroed."""
        self._allocator.give_back(batch.spare_pages)
        for generation in batch.left:
            self.release(generation)
        batch.left, batch.spare_pages = [], []
        return self.take_dirty()

    def take_dirty(self) -> list[int]:
        """Pages that were released since this was last asked, and may hold NaN."""
        dirty, self._dirty_pages = self._dirty_pages, []
        return dirty

    def release(self, generation: Generation) -> None:
        """Its own pages to the allocator, its row to the table, all locks undone."""
        for each in self._running:
            if each.copy_from is generation:
                self._compute_instead(each)
        if generation.spoiled:
            self._dirty_pages += generation.own_pages
        self._allocator.give_back(generation.own_pages)
        self._cache.unlock(generation.node)
        self.forget_copy(generation)
        self._tables.release(generation)
        generation.node, generation.pages, generation.shared_pages = None, [], 0
        generation.computed_len = generation.settled_len = generation.cached_len = 0

    def forget_cached(self) -> None:
        """Nobody runs: give up what the tree has, and what was to be zeroed."""
        self._allocator.give_back(self._cache.evict(self._cache.evictable_count))
        self.take_dirty()

    def forget_copy(self, generation: Generation) -> None:
        """It was made, or will not be."""
        self._let_go(generation.copy_from)
        generation.copy_from = None

    def _start(self, generation: Generation, prefix: Prefix, own: list[int]) -> None:
        """The tree keeps `prefix.pages`, which the generation reads; `own` are its own."""
        generation.node, generation.shared_pages = prefix.node, len(prefix.pages)
        generation.copy_from, generation.copy_page = prefix.holder, prefix.part_page
        generation.pages = prefix.pages + own
        generation.cached_len = generation.settled_len = generation.computed_len = prefix.tokens(self._page_size)
        generation.published = False
        self.cached_tokens += generation.cached_len

    def _compute_instead(self, generation: Generation) -> None:
        """Who was to copy from one that leaves before it was done, after a step that failed, runs that part itself."""
        whole = generation.shared_pages * self._page_size
        self.cached_tokens -= generation.cached_len - whole
        generation.cached_len = generation.settled_len = generation.computed_len = whole
        generation.copy_from = None

    def _keep(self, holder: TreeNode | Generation | None) -> None:
        """A page of the tree is locked; one that runs keeps its page until it leaves, and tells us then."""
        if isinstance(holder, TreeNode):
            self._cache.lock(holder)

    def _let_go(self, holder: TreeNode | Generation | None) -> None:
        if isinstance(holder, TreeNode):
            self._cache.unlock(holder)

    def _take(self, count: int) -> list[int]:
        lacking = count - self._allocator.free_count
        if lacking > 0:
            self._allocator.give_back(self._cache.evict(lacking))
        return self._allocator.take(count)
