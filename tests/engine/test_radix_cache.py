"""The radix tree against the flat cache: any order of operations, the same answers, and a sound tree at each."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from penstock_engine.radix_cache import RadixCache, TreeNode

from tests.engine.flat_cache import FlatCache

PAGE = 2
TOKENS = st.lists(st.integers(0, 2), max_size=9)  # few tokens, so that prefixes often meet
NAMESPACES = st.sampled_from(["", "acme"])


class RadixAgainstFlat(RuleBasedStateMachine):
    """A lock is held as (node, its namespace, the tokens it stands for); locks are undone in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.radix = RadixCache(PAGE)
        self.flat = FlatCache(PAGE)
        self.fresh_page = 0
        self.locks: list[tuple[TreeNode | None, str, list[int]]] = []

    @rule(namespace=NAMESPACES, tokens=TOKENS)
    def insert(self, namespace: str, tokens: list[int]) -> None:
        count = len(tokens) // PAGE
        pages = list(range(self.fresh_page, self.fresh_page + count))
        self.fresh_page += count
        _, theirs, duplicates = self.radix.insert(namespace, tokens, pages)
        assert (theirs, duplicates) == self.flat.insert(namespace, tokens, pages)

    @rule(namespace=NAMESPACES, tokens=TOKENS, keep=st.booleans())
    def match(self, namespace: str, tokens: list[int], keep: bool) -> None:
        match = self.radix.match(namespace, tokens)
        pages, partial_len = self.flat.match(namespace, tokens)
        assert (match.pages, match.partial_len) == (pages, partial_len)
        known, rest = tokens[: len(pages) * PAGE], tokens[len(pages) * PAGE :]
        if match.partial is not None:
            assert list(match.partial.keys[0][:partial_len]) == rest[:partial_len]
        if keep:
            self.radix.lock(match.node)
            self.flat.lock(namespace, known)
            self.locks.append((match.node, namespace, known))

    @precondition(lambda self: self.locks)
    @rule(data=st.data())
    def unlock(self, data: st.DataObject) -> None:
        node, namespace, known = self.locks.pop(data.draw(st.integers(0, len(self.locks) - 1)))
        self.radix.unlock(node)
        self.flat.lock(namespace, known, by=-1)

    @rule(count=st.integers(0, 5))
    def evict(self, count: int) -> None:
        assert sorted(self.radix.evict(count)) == sorted(self.flat.evict(count))

    @invariant()
    def counts_agree(self) -> None:
        assert self.radix.page_count == self.flat.page_count
        assert self.radix.evictable_count == self.flat.evictable_count

    @invariant()
    def tree_is_sound(self) -> None:
        nodes = list(self.radix.nodes())
        pages = [page for node in nodes for page in node.pages]
        assert len(pages) == len(set(pages)) == self.radix.page_count
        for node in nodes:
            assert len(node.keys) == len(node.pages)
            assert node.first_keys == sorted(node.children)
            assert bool(node.pages) == (node.parent is not None)
            for key, child in node.children.items():
                assert child.parent is node
                assert child.keys[0] == key
                assert child.lock_count <= node.lock_count
            if node.is_evictable:
                assert node.queued, "an evictable leaf that eviction cannot find"


TestRadixAgainstFlat = RadixAgainstFlat.TestCase
TestRadixAgainstFlat.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_least_recently_used_goes_first_and_from_its_end() -> None:
    cache = RadixCache(PAGE)
    cache.insert("", [1, 1, 2, 2, 3, 3], [10, 11, 12])
    cache.insert("", [1, 1, 9, 9], [10, 13])
    cache.match("", [1, 1, 2, 2, 3, 3])  # so [9, 9] is now the older
    assert cache.evict(1) == [13]
    assert cache.evict(1) == [12]
    assert sorted(cache.evict(9)) == [10, 11]
    assert cache.page_count == 0


def test_what_is_locked_stays() -> None:
    cache = RadixCache(PAGE)
    cache.insert("", [1, 1, 2, 2, 3, 3], [10, 11, 12])
    match = cache.match("", [1, 1, 2, 2])
    cache.lock(match.node)
    assert cache.evict(9) == [12]
    cache.unlock(match.node)
    assert sorted(cache.evict(9)) == [10, 11]


def test_the_longest_part_of_a_page_is_found_among_many() -> None:
    cache = RadixCache(8)
    for last in range(50):
        cache.insert("", [1, 2, 3, 4, last, last, last, last], [last])
    match = cache.match("", [1, 2, 3, 4, 33, 33, 5])
    assert match.pages == []
    assert match.partial_len == 6
    assert match.partial is not None
    assert match.partial.pages == [33]


def test_unlock_without_lock_is_refused() -> None:
    cache = RadixCache(PAGE)
    node = cache.insert("", [1, 1], [10]).node
    with pytest.raises(ValueError, match="without a lock"):
        cache.unlock(node)


def test_an_empty_namespace_leaves_nothing_behind() -> None:
    cache = RadixCache(PAGE)
    cache.insert("gone", [1, 1], [10])
    cache.evict(1)
    assert list(cache.nodes()) == []
