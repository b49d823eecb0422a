"""Steps that were launched and have not ended, and what was given up while they run.

    schedule N+1, launch it ──► N ends: commit ──► schedule N+2, launch it ──► N+1 ends: commit
                                └─ who ends here may be in N+1: its places and pages stay its own until N+1 has ended

A step counts as done from its launch on, so that the next one can be scheduled behind it; `undo` takes that back.
"""

from penstock_engine.batch import ScheduleBatch


class Flights:
    """The launched steps, oldest first: at most two, one that is waited for and one behind it."""

    def __init__(self) -> None:
        self._batches: list[ScheduleBatch] = []

    def __bool__(self) -> bool:
        return bool(self._batches)

    @property
    def latest(self) -> ScheduleBatch:
        """The step that ends last: what is given up now may still be in use by it."""
        return self._batches[-1]

    def begin(self, batch: ScheduleBatch) -> None:
        """`batch` was launched: its tokens count as computed, and those that it chooses are awaited."""
        self._batches.append(batch)
        self._move(batch, 1)

    def undo(self, batch: ScheduleBatch) -> None:
        """As if the latest had never been launched."""
        assert batch is self.latest, "a later step is in flight, which counts on this one"
        self._batches.pop()
        self._move(batch, -1)

    def end(self, batch: ScheduleBatch) -> None:
        """The oldest has ended: nothing of it is awaited any more."""
        assert batch is self._batches[0], "an earlier step is in flight"
        self._batches.pop(0)
        self._move_awaited(batch, -1)

    def _move(self, batch: ScheduleBatch, sign: int) -> None:
        for generation, extend_len in zip(batch.generations, batch.extend_lens, strict=True):
            generation.computed_len += sign * extend_len
        self._move_awaited(batch, sign)

    def _move_awaited(self, batch: ScheduleBatch, sign: int) -> None:
        for generation in batch.sampled:
            generation.awaited += sign
        for run in batch.scored:
            if (scoring := batch.generations[run.at].scoring) is not None:
                scoring.asked += sign * len(run.targets)
