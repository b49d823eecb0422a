"""The engine at overload for minutes: nothing lost, every page accounted for, no growth of memory.

python -m bench.soak [MODEL_FOLDER] [--minutes N] [--json PATH]

Requests come faster than they can be served, so the bounded queue refuses some; the pool is too small for all that may
run, so some are preempted. Lengths are ragged (lognormal); prompts share beginnings; some ask for several choices, for
the best of some, or for log probabilities of the prompt; some are aborted, some late, and now and then one makes the
model fail. Exits with an error if a request is lost, a page is missing, or memory grows.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
import torch
from penstock_engine import Engine, EngineConfig, QueueFull, Request, SamplingParams, StepOutput
from penstock_engine.batch import ScheduleBatch
from penstock_engine.pending import Pending

DEMO = Path(__file__).parent.parent / "examples" / "invoices" / "model"
MIB = 1 << 20
# The allocator of C keeps what it once needed: what a few seconds of the highest load so far may add is no leak.
NOISE_MIB = 8.0
SAMPLES = 12  # at least, however short the run; from twelve minutes on one for each minute
POISON = "poison"


@dataclass(frozen=True)
class Mix:
    """What is asked, and how often: chances are of one request."""

    stems: int = 24
    stem_tokens: int = 120
    own_median: float = 30.0
    output_median: float = 60.0
    sigma: float = 0.8
    several: float = 0.1  # of 2 to 4 choices, half of them the best of one more
    scored: float = 0.02
    aborted: float = 0.05
    late: float = 0.05
    patience: float = 2.0  # seconds to the furthest of the deadlines that some have
    poison: float = 0.005


class Source:
    """Requests without end, the same ones for the same seed."""

    def __init__(self, mix: Mix, vocabulary: int, longest: int, seed: int = 0) -> None:
        self._mix, self._vocabulary, self._longest = mix, vocabulary, longest
        self._random = random.Random(seed)
        self._stems = [self._tokens(mix.stem_tokens) for _ in range(mix.stems)]
        self._made = 0

    def draw(self) -> Request:
        self._made += 1
        mix, chance = self._mix, self._random.random
        stem = self._random.choice(self._stems)
        prompt = stem[: self._random.randrange(mix.stem_tokens)] + self._tokens(self._length(mix.own_median))
        kind = POISON if chance() < mix.poison else "request"
        return Request(
            f"{kind}-{self._made}",
            prompt[: self._longest // 2],
            self._sampling(),
            tenant=f"tenant-{self._random.randrange(4)}",
            priority=self._random.randrange(3),
            request_class="interactive" if chance() < 0.2 else "batch",
            deadline=time.time() + mix.patience * self._random.random() if chance() < mix.late else None,
        )

    def is_to_be_aborted(self) -> bool:
        return self._random.random() < self._mix.aborted

    def _sampling(self) -> SamplingParams:
        mix, chance = self._mix, self._random.random
        n = self._random.randint(2, 4) if chance() < mix.several else 1
        return SamplingParams(
            temperature=self._random.choice([0.0, 0.7, 1.0]),
            top_p=self._random.choice([0.9, 1.0]),
            max_tokens=min(self._length(mix.output_median), self._longest // 2),
            ignore_eos=True,
            n=n,
            best_of=n + 1 if n > 1 and chance() < 0.5 else None,
            prompt_logprobs=0 if chance() < mix.scored else None,
        )

    def _tokens(self, count: int) -> list[int]:
        return [self._random.randrange(self._vocabulary) for _ in range(count)]

    def _length(self, median: float) -> int:
        return 1 + int(median * self._random.lognormvariate(0, self._mix.sigma))


@dataclass
class Ledger:
    """Where each request is. What is told of one that is not in flight is an error (KeyError)."""

    submitted: int = 0
    refused: int = 0
    in_flight: dict[str, int] = field(default_factory=dict)  # how many choices are still to end
    ended: Counter[str] = field(default_factory=Counter)  # "finished", "aborted", or a failure's code
    tokens: int = 0

    def note(self, output: StepOutput) -> None:
        for delta in output.deltas:
            self.tokens += 1
            if delta.finish_reason is not None:
                self.in_flight[delta.request_id] -= 1
                if not self.in_flight[delta.request_id]:
                    self.end(delta.request_id, "finished")
        for failure in output.failed:
            self.end(failure.request_id, failure.code)

    def end(self, name: str, how: str) -> None:
        del self.in_flight[name]
        self.ended[how] += 1


@dataclass(frozen=True)
class Sample:
    """One interval: tokens told in it, and the resident memory at its end."""

    second: float
    tokens_per_s: float
    rss_mib: float


class Overload:
    """Keeps an engine's waiting queue full, and counts."""

    def __init__(self, engine: Engine, source: Source) -> None:
        self.engine, self.source = engine, source
        self.ledger = Ledger()
        self._doomed: dict[str, int] = {}  # to be aborted at that step
        _poison(engine)

    def step(self, arrivals: int = 4) -> None:
        """`arrivals` requests come, those whose time it is are aborted, and the engine runs a step."""
        for _ in range(arrivals):
            self._submit(self.source.draw())
        for name in [name for name, when in self._doomed.items() if when <= self.engine.stats().steps]:
            del self._doomed[name]
            if self.engine.abort(name):
                self.ledger.end(name, "aborted")
        self.ledger.note(self.engine.step())

    def drain(self) -> None:
        """Let what is in flight come to its end."""
        while self.engine.has_work:
            self.step(arrivals=0)

    def _submit(self, request: Request) -> None:
        try:
            self.engine.submit(request)
        except QueueFull:
            self.ledger.refused += 1
            return
        self.ledger.submitted += 1
        self.ledger.in_flight[request.id] = request.sampling.n
        if self.source.is_to_be_aborted():
            self._doomed[request.id] = self.engine.stats().steps + len(request.prompt_ids)


def _poison(engine: Engine) -> None:
    """Make the model fail whenever a poisonous request is in the batch."""
    launch = engine._runner.launch

    def poisoned(batch: ScheduleBatch) -> Pending:
        if any(each.request.id.startswith(POISON) for each in batch.generations):
            raise RuntimeError("poison")
        return launch(batch)

    engine._runner.launch = poisoned  # type: ignore[method-assign]  # a fault at the door to the device, for this run


def soak(overload: Overload, seconds: float, interval: float) -> list[Sample]:
    """Run at overload for `seconds`, then to the end of what is in flight; a sample for each `interval`."""
    process = psutil.Process()
    samples: list[Sample] = []
    began = last = time.perf_counter()
    tokens = 0
    while (now := time.perf_counter()) - began < seconds:
        overload.step()
        if now - last >= interval:
            rate = (overload.ledger.tokens - tokens) / (now - last)
            samples.append(Sample(now - began, rate, process.memory_info().rss / MIB))
            tokens, last = overload.ledger.tokens, now
    overload.drain()
    return samples


@dataclass(frozen=True)
class Verdict:
    """MiB a minute by the median of all slopes between two samples (Theil and Sen), which outliers do not move."""

    slope_mib_per_minute: float
    grown_mib: float
    holds: bool


def judge_memory(samples: list[Sample]) -> Verdict:
    """Whether memory stands still after warm-up, which is the first third.

    It grows if the last third's median lies above the middle third's by more than NOISE_MIB.
    """
    third = len(samples) // 3
    warm = samples[third:]
    slopes = [
        (after.rss_mib - before.rss_mib) / (after.second - before.second) * 60
        for at, before in enumerate(warm)
        for after in warm[at + 1 :]
    ]
    middle = statistics.median(each.rss_mib for each in samples[third : 2 * third])
    grown = statistics.median(each.rss_mib for each in samples[2 * third :]) - middle
    return Verdict(statistics.median(slopes), grown, grown <= NOISE_MIB)


def make_engine(folder: Path, kv_pages: int) -> Engine:
    """Room for 32 at once, and for about half of them at their full length."""
    config = EngineConfig(max_running=32, max_waiting=64, token_budget=256, kv_pages=kv_pages, max_model_len=512)
    return Engine.from_folder(folder, config)


@dataclass(frozen=True)
class Books:
    """What came of every request and every page. `hit_rate` is the share of prompt tokens found in the cache."""

    arrived: int
    submitted: int
    refused: int
    ended: dict[str, int]  # "finished", "aborted", or a failure's code
    lost: int
    tokens: int
    steps: int
    preemptions: int
    hit_rate: float
    pages: dict[str, int]
    pages_total: int

    @property
    def problems(self) -> list[str]:
        """Empty if all adds up, and the engine had to refuse and to preempt."""
        told = (
            (f"{self.lost} requests lost", self.lost),
            (f"{self.pages['in_use']} pages in use by nobody", self.pages["in_use"]),
            ("pages do not add up", sum(self.pages.values()) != self.pages_total),
            ("no request was refused: this was no overload", not self.refused),
            ("nobody was preempted: the pool was not small", not self.preemptions),
        )
        return [problem for problem, there in told if there]


def balance(overload: Overload) -> Books:
    """The books after `drain`."""
    ledger, stats = overload.ledger, overload.engine.stats()
    return Books(
        arrived=ledger.submitted + ledger.refused,
        submitted=ledger.submitted,
        refused=ledger.refused,
        ended=dict(sorted(ledger.ended.items())),
        lost=ledger.submitted - sum(ledger.ended.values()),
        tokens=ledger.tokens,
        steps=stats.steps,
        preemptions=stats.preemptions,
        hit_rate=stats.hit_rate,
        pages={"free": stats.pages_free, "cached": stats.pages_cached, "in_use": stats.pages_in_use},
        pages_total=stats.pages_total,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=DEMO)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--kv-pages", type=int, default=120)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    engine = make_engine(args.folder, args.kv_pages)
    overload = Overload(engine, Source(Mix(), engine.model_config.vocab_size, engine.max_model_len))
    samples = soak(overload, args.minutes * 60, interval=min(60.0, args.minutes * 60 / SAMPLES))
    books, memory = balance(overload), judge_memory(samples)
    show(books, memory, samples)
    if args.json:
        parts = {"books": asdict(books), "memory": asdict(memory), "samples": [asdict(each) for each in samples]}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"where": where(args.folder), **parts}, indent=2) + "\n")
    problems = books.problems + ([] if memory.holds else [f"memory grew by {memory.grown_mib:.1f} MiB"])
    sys.exit("; ".join(problems) or None)


def show(books: Books, memory: Verdict, samples: list[Sample]) -> None:
    print(f"{'second':>8} {'tokens/s':>10} {'RSS MiB':>9}")
    for sample in samples:
        print(f"{sample.second:8.0f} {sample.tokens_per_s:10.0f} {sample.rss_mib:9.1f}")
    for key, value in {**asdict(books), **asdict(memory)}.items():
        print(f"{key:>22}: {value}")


def where(folder: Path) -> dict[str, object]:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    machine = platform.processor() or platform.machine()
    return {"model": os.path.relpath(folder), "machine": machine, "torch": torch.__version__, "commit": commit}


if __name__ == "__main__":
    main()
