"""Which pages of the KV pool are free. Knows numbers, not memory.

Page 0 is the null page: it is never handed out, and padding points at it.
"""

from collections.abc import Iterable

from penstock_engine.errors import OutOfPages

NULL_PAGE = 0


class PageAllocator:
    """Hands out pages 1 .. `total`, and takes them back."""

    def __init__(self, total: int) -> None:
        self._begin(total)

    def resize(self, total: int) -> None:
        """Have pages 1 .. `total` from now on. Raises ValueError where any is taken."""
        if self.free_count < self.total:
            raise ValueError(f"{self.total - self.free_count} pages are taken, so their number cannot change")
        self._begin(total)

    def _begin(self, total: int) -> None:
        self.total = total
        self._free = list(range(total, NULL_PAGE, -1))  # a stack: what was freed last is still warm
        self._is_free = bytearray(b"\x01") * (total + 1)
        self._is_free[NULL_PAGE] = 0

    @property
    def free_count(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """`count` pages, now the caller's. Raises OutOfPages, taking none, when fewer are free."""
        if count > len(self._free):
            raise OutOfPages(count, len(self._free))
        pages = [self._free.pop() for _ in range(count)]
        for page in pages:
            self._is_free[page] = 0
        return pages

    def give_back(self, pages: Iterable[int]) -> None:
        """Return pages. Raises ValueError for a page that is free already or never was one of ours."""
        for page in pages:
            if not NULL_PAGE < page <= self.total or self._is_free[page]:
                raise ValueError(f"page {page} is not taken, so it cannot be given back")
            self._is_free[page] = 1
            self._free.append(page)
