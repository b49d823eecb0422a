"""The prefix cache in its plainest form: one entry per page, found by all tokens up to its end.

What RadixCache does with a tree this does by walking a dictionary. Slow, short, and the measure of the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

Path = tuple[str, tuple[int, ...]]  # a namespace, and every token from the beginning to the end of a page


@dataclass
class Entry:
    page: int
    last_used: int
    locks: int = 0


class FlatCache:
    """One `Entry` per cached page."""

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self.entries: dict[Path, Entry] = {}
        self._clock = 0

    @property
    def page_count(self) -> int:
        return len(self.entries)

    @property
    def evictable_count(self) -> int:
        return sum(entry.locks == 0 for entry in self.entries.values())

    def match(self, namespace: str, tokens: Sequence[int]) -> tuple[list[int], int]:
        """The pages of the longest cached run of whole pages, and how far one more page agrees."""
        self._clock += 1
        pages = [self._touch(path).page for path in self.prefixes(namespace, tokens) if path in self.entries]
        known = tuple(tokens[: len(pages) * self.page_size])
        rest = tokens[len(known) : len(known) + self.page_size]
        followers = [
            path[1][len(known) :]
            for path in self.entries
            if path[0] == namespace and path[1][: len(known)] == known and len(path[1]) == len(known) + self.page_size
        ]
        return pages, max((agreement(each, rest) for each in followers), default=0)

    def insert(self, namespace: str, tokens: Sequence[int], pages: Sequence[int]) -> tuple[list[int], list[int]]:
        """The tree's pages of `tokens`, and those of `pages` that it had others for."""
        self._clock += 1
        theirs = []
        for path, page in zip(self.prefixes(namespace, tokens), pages, strict=True):
            entry = self.entries.setdefault(path, Entry(page, self._clock))
            entry.last_used = self._clock
            theirs.append(entry.page)
        return theirs, [mine for mine, other in zip(pages, theirs, strict=True) if mine != other]

    def lock(self, namespace: str, tokens: Sequence[int], by: int = 1) -> None:
        for path in self.prefixes(namespace, tokens):
            self.entries[path].locks += by

    def evict(self, count: int) -> list[int]:
        freed: list[int] = []
        while len(freed) < count and (leaves := [path for path in self.entries if self._is_evictable(path)]):
            oldest = min(leaves, key=lambda path: self.entries[path].last_used)
            freed.append(self.entries.pop(oldest).page)
        return freed

    def prefixes(self, namespace: str, tokens: Sequence[int]) -> list[Path]:
        ends = range(self.page_size, len(tokens) + 1, self.page_size)
        return [(namespace, tuple(tokens[:end])) for end in ends]

    def _touch(self, path: Path) -> Entry:
        self.entries[path].last_used = self._clock
        return self.entries[path]

    def _is_evictable(self, path: Path) -> bool:
        length = len(path[1])
        followed = any(
            other[0] == path[0] and len(other[1]) > length and other[1][:length] == path[1] for other in self.entries
        )
        return self.entries[path].locks == 0 and not followed


def agreement(left: Sequence[int], right: Sequence[int]) -> int:
    return next((at for at, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
