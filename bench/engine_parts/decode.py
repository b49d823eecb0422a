"""The same loads to every contestant, in turn, several rounds over; medians of the rounds.

A machine's speed drifts. Within a round each contestant has the same load at nearly the same time, and every other
round goes through them backwards, so that what drifts falls on all alike.
"""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import mean, median

from bench.engine_parts.contestants import Contestant, ContestantFailed, ContestantMissing, Running, start
from bench.engine_parts.protocol import Load, Measured, Memory

WARM_UP_OUTPUT = 4  # tokens: enough to meet every shape that the load has


@dataclass(frozen=True)
class Plan:
    """Batches of `prompt` random tokens and `output` more, over `rounds`."""

    batches: Sequence[int]
    prompt: int
    output: int
    rounds: int

    def load(self, batch: int, number: int) -> Load:
        """A round's tokens are its own, so that no cache of prefixes has met them."""
        return Load(batch, self.prompt, self.output, seed=number)

    def warm_up(self, batch: int) -> Load:
        return Load(batch, self.prompt, WARM_UP_OUTPUT, seed=-1)


@dataclass
class Row:
    """One contestant at one batch. Figures are medians over the rounds, None where there is nothing to tell."""

    contestant: str
    batch: int
    missing: str = ""  # why there is nothing
    rounds: list[dict[str, float | None]] = field(default_factory=list)
    same_first_tokens: float | None = None  # share of sequences that begin as with the first contestant

    @property
    def tokens_per_s(self) -> float | None:
        """Output tokens over the whole time, prefill included."""
        return self._median("tokens_per_s")

    @property
    def decode_tokens_per_s(self) -> float | None:
        """Output tokens over the time of the steps in which all sequences decode."""
        return self._median("decode_tokens_per_s")

    @property
    def step_ms(self) -> float | None:
        """The median step among those."""
        return self._median("step_ms")

    def _median(self, name: str) -> float | None:
        values = [value for each in self.rounds if (value := each[name]) is not None]
        return median(values) if values else None


@dataclass(frozen=True)
class Process:
    """A contestant's own account: what it runs with, and what it holds with its model loaded and after all loads."""

    about: dict[str, str]
    loaded: Memory
    end: Memory


@dataclass(frozen=True)
class Race:
    rows: list[Row]
    processes: dict[str, Process]  # by contestant


def race(contestants: Sequence[Contestant], plan: Plan) -> Race:
    """Measure everybody who is here. Raises ContestantFailed."""
    rows = {(each.name, batch): Row(each.name, batch) for each in contestants for batch in plan.batches}
    firsts: dict[tuple[str, int], list[int]] = {key: [] for key in rows}
    with ExitStack() as stack:
        running = _start(contestants, plan, rows, stack)
        for number in range(plan.rounds):
            for batch in plan.batches:
                for each in running if number % 2 == 0 else reversed(running):
                    name, load = each.contestant.name, plan.load(batch, number)
                    _tell(f"round {number + 1} of {plan.rounds}, batch {batch}: {name}")
                    measured = each.measure(load)
                    rows[name, batch].rounds.append(rates(load, measured))
                    firsts[name, batch] += measured.first_tokens
        processes = {each.contestant.name: Process(each.about, each.loaded, each.end) for each in running}
    _tell("")
    _compare(rows, firsts, reference=running[0].contestant.name)
    _check_same_model(contestants, rows)
    return Race(list(rows.values()), processes)


def _start(
    contestants: Sequence[Contestant], plan: Plan, rows: dict[tuple[str, int], Row], stack: ExitStack
) -> list[Running]:
    """Load and warm up whoever can run here; the rows of the others say why not."""
    running = []
    for each in contestants:
        _tell(f"loading {each.name}")
        try:
            started = stack.enter_context(start(each))
        except ContestantMissing as reason:
            for batch in plan.batches:
                rows[each.name, batch].missing = str(reason)
        else:
            running.append(started)
            for batch in plan.batches:
                started.measure(plan.warm_up(batch))
    return running


def rates(load: Load, measured: Measured) -> dict[str, float | None]:
    """Tokens per second, and milliseconds."""
    steps = measured.decode_steps
    return {
        "tokens_per_s": load.batch * load.output / measured.seconds,
        "decode_tokens_per_s": load.batch / mean(steps) if steps else None,
        "step_ms": median(steps) * 1e3 if steps else None,
    }


def _compare(rows: dict[tuple[str, int], Row], firsts: dict[tuple[str, int], list[int]], reference: str) -> None:
    for (name, batch), row in rows.items():
        pairs = list(zip(firsts[name, batch], firsts[reference, batch], strict=not row.missing))
        row.same_first_tokens = mean(own == other for own, other in pairs) if pairs else None


def _check_same_model(contestants: Sequence[Contestant], rows: dict[tuple[str, int], Row]) -> None:
    """A speed is worth comparing only between engines that run the same model."""
    for each in contestants:
        shares = [row.same_first_tokens for (name, _), row in rows.items() if name == each.name]
        largest_batch = shares[-1]
        if not each.rough and largest_batch is not None and largest_batch < 0.5:
            raise ContestantFailed(f"{each.name} begins {largest_batch:.0%} of its outputs alike: another model?")


def _tell(progress: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{progress}", end="", file=sys.stderr, flush=True)
    elif progress:
        print(progress, file=sys.stderr, flush=True)
