"""Who waits, and who of them goes first.

    lines:  (interactive, "acme")  [ g4 g7 ... ]      by priority, deadline, age
            (batch, "acme")        [ g1 ]
            (batch, "apex")        [ g2 g3 g5 ... ]
    parked: g6 behind g0, which runs and computes the prefix that both begin with

The order is class, then tenant by virtual counter, then priority, deadline and age in buckets; within a bucket, the
longest cached prefix. So that nothing starves behind a better class or a lower counter, the one that has waited longest
goes when `PATIENCE` - 1 others have gone before it; the counters take note of it, so that only a share below one in
`PATIENCE` gains by it.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from operator import attrgetter

from penstock_engine.fairness import VirtualCounters
from penstock_engine.request import CLASS_RANK, Generation

PATIENCE = 32  # admissions
AGE_BUCKET = 64  # submissions: those within one count as of one age
LOOKAHEAD = 8  # of one bucket, whose cached prefixes are compared; each comparison walks the tree

Line = list[Generation]
_ORDER = attrgetter("order")


class WaitingQueue:
    """The waiting generations. `first` chooses one, `remove` takes it out."""

    def __init__(self, counters: VirtualCounters) -> None:
        self._counters = counters
        self._all: dict[Generation, None] = {}  # by when they came, or came back
        self._lines: dict[tuple[int, str], Line] = {}  # by class and tenant; none is empty
        self._parked: dict[Generation, Generation] = {}  # behind whom
        self._passed = 0  # admissions since that of the one that had waited longest

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Generation]:
        return iter(self._all)

    def add(self, generation: Generation) -> None:
        self._all[generation] = None
        self._counters.enter(generation.request.tenant)
        self._line_up(generation)

    def remove(self, generation: Generation) -> None:
        """Raises KeyError if it does not wait."""
        del self._all[generation]
        self._counters.leave(generation.request.tenant)
        if self._parked.pop(generation, None) is None:
            self._step_out(generation)

    def admit(self, generation: Generation) -> None:
        """Remove `generation`, whose turn it was."""
        self._passed = 0 if generation is self._oldest() else self._passed + 1
        self.remove(generation)

    def first(self, cached_len: Callable[[Generation], int]) -> Generation | None:
        """Whose turn it is; None if nobody waits but behind others."""
        if not self._lines:
            return None
        if self._passed >= PATIENCE - 1:
            return self._oldest()
        line = min(self._lines.values(), key=self._turn)
        return line[0] if len(line) == 1 else max(_level_with_first(line), key=cached_len)

    def park(self, generation: Generation, behind: Generation) -> None:
        """Let `generation` wait until `behind` has computed the prefix of both."""
        self._step_out(generation)
        self._parked[generation] = behind

    def unpark(self, behind: Generation) -> None:
        """`behind` is done with it, or has left: whoever waited behind it is in line again."""
        for generation in [each for each, leader in self._parked.items() if leader is behind]:
            del self._parked[generation]
            self._line_up(generation)

    def _oldest(self) -> Generation | None:
        return next((each for each in self._all if each not in self._parked), None)

    def _turn(self, line: Line) -> tuple[int, int, tuple[float, ...]]:
        request = line[0].request
        return CLASS_RANK[request.request_class], self._counters.level(request.tenant), line[0].order

    def _line_up(self, generation: Generation) -> None:
        insort(self._lines.setdefault(_line_of(generation), []), generation, key=_ORDER)

    def _step_out(self, generation: Generation) -> None:
        key = _line_of(generation)
        line = self._lines[key]
        del line[bisect_left(line, generation.order, key=_ORDER)]
        if not line:
            del self._lines[key]


def _line_of(generation: Generation) -> tuple[int, str]:
    return CLASS_RANK[generation.request.request_class], generation.request.tenant


def _level_with_first(line: Line) -> Line:
    """Those that go before the first if they have more cached; ties stay in order."""
    return [each for each in line[:LOOKAHEAD] if _bucket(each) == _bucket(line[0])]


def _bucket(generation: Generation) -> tuple[float, ...]:
    *coarse, arrival, _ = generation.order
    return (*coarse, arrival // AGE_BUCKET)
