"""A reading is kept for a while."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from penstock.recent import Recent


class Source:
    """Counts how often it is read, each time taking so long by a clock of its own."""

    def __init__(self, takes: float = 0.0) -> None:
        self.now, self.reads, self.takes = 0.0, 0, takes

    def read(self) -> int:
        self.reads += 1
        self.now += self.takes
        if self.reads == 2:
            raise OSError("away")
        return self.reads

    def recent(self) -> Recent[int]:
        return Recent(self.read, 5.0, lambda: self.now)


def test_it_is_read_again_when_it_is_old() -> None:
    source = Source()
    recent = source.recent()
    assert recent.get() == 1
    source.now = 4.9
    assert recent.get() == 1
    source.now = 5.0
    with pytest.raises(OSError, match="away"):
        recent.get()
    assert recent.get() == 3


def test_what_takes_long_is_read_seldom() -> None:
    source = Source(takes=2.0)
    recent = source.recent()
    assert recent.get() == 1
    source.now += 19.9
    assert recent.get() == 1
    source.now += 0.1
    with pytest.raises(OSError, match="away"):
        recent.get()


def test_of_many_who_ask_at_once_one_reads() -> None:
    source, start = Source(), Barrier(8)
    recent = source.recent()

    def ask(_: int) -> int:
        start.wait()
        return recent.get()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == [1] * 8
