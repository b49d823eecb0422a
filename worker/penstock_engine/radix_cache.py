"""Which pages already hold which tokens: a radix tree whose edges are runs of whole pages.

A node's path from its namespace's root spells the tokens; its `pages` hold their K and V. A namespace is a root of
its own, so nothing under one can be found, or even timed, from another.

    root "acme" ── [p7 p3] ─┬─ [p9]          every edge is a whole number of pages;
                            └─ [p4 p8 p5]    children differ somewhere in their first page

Ownership: pages in the tree belong to the tree. `insert` takes over pages that were the caller's, and names those
of the caller's that the tree had already (duplicates, still the caller's to give back). `evict` gives pages up: they
are the caller's from then on. What is locked, and all above it, is never evicted; lock counts change only in `lock`
and `unlock`.
"""

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

PageKey = tuple[int, ...]


class TreeNode:
    """A run of pages. A root has no pages and no parent, and carries its namespace."""

    __slots__ = ("children", "first_keys", "keys", "last_used", "lock_count", "namespace", "pages", "parent", "queued")

    def __init__(self, parent: "TreeNode | None", keys: list[PageKey], pages: list[int], namespace: str) -> None:
        self.parent = parent
        self.keys = keys
        self.pages = pages
        self.namespace = namespace
        self.children: dict[PageKey, TreeNode] = {}
        self.first_keys: list[PageKey] = []  # of the children, sorted: neighbours share the longest prefixes
        self.lock_count = 0
        self.last_used = 0
        self.queued = False  # has an entry in the eviction heap

    @property
    def is_evictable(self) -> bool:
        return self.parent is not None and self.lock_count == 0 and not self.children

    def add_child(self, child: "TreeNode") -> None:
        self.children[child.keys[0]] = child
        insort(self.first_keys, child.keys[0])
        child.parent = self

    def remove_child(self, child: "TreeNode") -> None:
        del self.children[child.keys[0]]
        self.first_keys.pop(bisect_left(self.first_keys, child.keys[0]))

    def longest_partial(self, tokens: PageKey) -> "tuple[TreeNode | None, int]":
        """The child whose first page shares the longest run with `tokens`, and the length of that run."""
        at = bisect_left(self.first_keys, tokens)
        near = self.first_keys[max(at - 1, 0) : at + 1]
        best = max(near, key=lambda key: common_len(key, tokens), default=())
        shared = common_len(best, tokens)
        return (self.children[best], shared) if shared else (None, 0)


class Match(NamedTuple):
    """The longest cached prefix: whole `pages` down to `node`, then `partial_len` tokens of `partial`'s first page."""

    node: TreeNode | None
    pages: list[int]
    partial: TreeNode | None = None
    partial_len: int = 0


class Insertion(NamedTuple):
    """`pages` are the tree's, for the inserted tokens; `duplicates` were the caller's and still are."""

    node: TreeNode | None
    pages: list[int]
    duplicates: list[int]


class PrefixCache(Protocol):
    """What the scheduler needs of a cache; RadixCache and NoCache have it."""

    @property
    def remembers(self) -> bool: ...  # what is inserted can be found again
    @property
    def evictable_count(self) -> int: ...
    @property
    def page_count(self) -> int: ...
    def match(self, namespace: str, tokens: Sequence[int]) -> Match: ...
    def insert(self, namespace: str, tokens: Sequence[int], pages: Sequence[int]) -> Insertion: ...
    def lock(self, node: TreeNode | None) -> None: ...
    def unlock(self, node: TreeNode | None) -> None: ...
    def evict(self, count: int) -> list[int]: ...


class NoCache:
    """The trivial cache: finds nothing, keeps nothing."""

    remembers = False
    evictable_count = 0
    page_count = 0

    def match(self, namespace: str, tokens: Sequence[int]) -> Match:  # noqa: ARG002 (the interface's)
        return Match(None, [])

    def insert(self, namespace: str, tokens: Sequence[int], pages: Sequence[int]) -> Insertion:  # noqa: ARG002
        return Insertion(None, [], [])

    def lock(self, node: TreeNode | None) -> None: ...

    def unlock(self, node: TreeNode | None) -> None: ...

    def evict(self, count: int) -> list[int]:  # noqa: ARG002 (the interface's)
        return []


class RadixCache:
    """The radix tree, with eviction of the least recently used unlocked leaves.

    `kept_as` is how its pages hold K and V, and part of every namespace: they mean nothing to a pool of another kind.
    """

    remembers = True

    def __init__(self, page_size: int, kept_as: str = "auto") -> None:
        self.page_size = page_size
        self.kept_as = kept_as
        self.page_count = 0
        self.evictable_count = 0  # pages of nodes that nothing locks; leaves of them go first
        self._roots: dict[str, TreeNode] = {}
        self._clock = 0
        self._heap: list[tuple[int, int, TreeNode]] = []  # (last_used, tie-break, node); entries may be stale
        self._pushes = 0

    def match(self, namespace: str, tokens: Sequence[int]) -> Match:
        """The longest cached prefix of `tokens`, to the token. Lock what you use before the next `evict`."""
        root = self._roots.get(self._rooted(namespace))
        if root is None:
            return Match(None, [])
        node, pages = self._walk(root, self._keys(tokens))
        start = len(pages) * self.page_size
        partial, partial_len = node.longest_partial(tuple(tokens[start : start + self.page_size]))
        return Match(node, pages, partial, partial_len)

    def insert(self, namespace: str, tokens: Sequence[int], pages: Sequence[int]) -> Insertion:
        """Own `pages`, which hold the whole pages of `tokens` in order; what hangs over a page is left out."""
        keys = self._keys(tokens)
        namespace = self._rooted(namespace)
        root = self._roots.setdefault(namespace, TreeNode(None, [], [], namespace))
        node, known = self._walk(root, keys)
        fresh = list(pages[len(known) : len(keys)])
        if fresh:
            leaf = TreeNode(node, keys[len(known) :], fresh, namespace)
            leaf.last_used = self._clock
            node.add_child(leaf)
            self.page_count += len(fresh)
            self.evictable_count += len(fresh)
            self._queue(leaf)
            node = leaf
        duplicates = [mine for mine, theirs in zip(pages, known, strict=False) if mine != theirs]
        return Insertion(node, known + fresh, duplicates)

    def lock(self, node: TreeNode | None) -> None:
        """Keep `node` and everything above it until the matching `unlock`. None is nothing."""
        while node is not None:
            if node.lock_count == 0:
                self.evictable_count -= len(node.pages)
            node.lock_count += 1
            node = node.parent

    def unlock(self, node: TreeNode | None) -> None:
        """Undo one `lock`."""
        while node is not None:
            if node.lock_count == 0:
                raise ValueError("unlock without a lock")
            node.lock_count -= 1
            if node.lock_count == 0:
                self.evictable_count += len(node.pages)
                self._queue(node)
                self._drop_empty_root(node)
            node = node.parent

    def evict(self, count: int) -> list[int]:
        """Up to `count` pages out of the least recently used unlocked leaves, from their ends."""
        freed: list[int] = []
        while self._heap and len(freed) < count:
            stamp, _, node = heapq.heappop(self._heap)
            node.queued = False
            if not node.is_evictable:
                continue  # it is queued again by what makes it evictable
            if stamp == node.last_used:
                freed += self._trim(node, count - len(freed))
            self._queue(node)
        return freed

    def nodes(self) -> Iterator[TreeNode]:
        """Every node, parents before children."""
        stack = list(self._roots.values())
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    def _rooted(self, namespace: str) -> str:
        return f"{self.kept_as}/{namespace}"

    def _keys(self, tokens: Sequence[int]) -> list[PageKey]:
        size = self.page_size
        return [tuple(tokens[at : at + size]) for at in range(0, len(tokens) - size + 1, size)]

    def _walk(self, node: TreeNode, keys: list[PageKey]) -> tuple[TreeNode, list[int]]:
        """Go down along `keys` as far as they agree, splitting the last node where they part."""
        self._clock += 1
        pages: list[int] = []
        node.last_used = self._clock
        while len(pages) < len(keys) and (child := node.children.get(keys[len(pages)])) is not None:
            agreed = common_len(child.keys, keys[len(pages) :])
            if agreed < len(child.keys):
                child = self._split(child, agreed)
            pages += child.pages
            child.last_used = self._clock
            node = child
        return node, pages

    def _split(self, node: TreeNode, at: int) -> TreeNode:
        """Cut `node` before page `at`: the new upper part is returned; `node` keeps the lower, and its identity."""
        parent = node.parent
        assert parent is not None  # a root has no pages to cut
        upper = TreeNode(parent, node.keys[:at], node.pages[:at], node.namespace)
        upper.lock_count, upper.last_used = node.lock_count, node.last_used
        parent.remove_child(node)
        node.keys, node.pages = node.keys[at:], node.pages[at:]
        parent.add_child(upper)
        upper.add_child(node)
        return upper

    def _trim(self, leaf: TreeNode, most: int) -> list[int]:
        """Take up to `most` pages from the end of `leaf`; without pages it leaves the tree."""
        take = min(most, len(leaf.pages))
        freed = leaf.pages[-take:]
        parent = leaf.parent
        assert parent is not None  # a root is no leaf that can be evicted
        if take == len(leaf.pages):
            parent.remove_child(leaf)
            leaf.parent = None
            self._queue(parent)
            self._drop_empty_root(parent)
        leaf.keys, leaf.pages = leaf.keys[:-take], leaf.pages[:-take]
        self.page_count -= take
        self.evictable_count -= take
        return freed

    def _queue(self, node: TreeNode) -> None:
        if node.is_evictable and not node.queued:
            self._pushes += 1
            node.queued = True
            heapq.heappush(self._heap, (node.last_used, self._pushes, node))

    def _drop_empty_root(self, node: TreeNode) -> None:
        if node.parent is None and not node.children and node.lock_count == 0:
            self._roots.pop(node.namespace, None)


def common_len(left: Sequence[object], right: Sequence[object]) -> int:
    """How many leading items two sequences share."""
    for at, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return at
    return min(len(left), len(right))
