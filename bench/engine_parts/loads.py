"""Loads for the engine alone, and how one is run."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil

from penstock_engine import Engine, Request, SamplingParams, StepOutput

from bench.engine_parts.protocol import Load


@dataclass(frozen=True)
class RaggedTrace:
    """`requests` at once, their prompts and outputs of lognormal lengths, independent of each other.

    A lognormal length's mean is its median times exp(sigma^2 / 2): with sigma 1, 1.65 times.
    """

    requests: int
    prompt_median: int
    output_median: int
    sigma: float = 1.0
    seed: int = 0

    def draw(self, vocabulary: int, most: int) -> list[Request]:
        """The same for each `seed`; lengths are cut at `most` tokens."""
        draw = random.Random(self.seed)

        def length(middle: int) -> int:
            return min(most, ceil(middle * draw.lognormvariate(0, self.sigma)))

        lengths = [(length(self.prompt_median), length(self.output_median)) for _ in range(self.requests)]
        return [
            greedy(f"r{at}", tokens(draw, prompt, vocabulary), output) for at, (prompt, output) in enumerate(lengths)
        ]


@dataclass(frozen=True)
class SharedPrefix:
    """`jobs` that begin with the same `shared` tokens, each with a tail of its own of `tails` tokens (from, to)."""

    jobs: int = 64
    shared: int = 1000
    tails: tuple[int, int] = (16, 96)
    output: int = 8
    seed: int = 0

    def draw(self, vocabulary: int) -> list[Request]:
        draw = random.Random(self.seed)
        lengths = [draw.randint(*self.tails) for _ in range(self.jobs)]
        beginning = tokens(draw, self.shared, vocabulary)
        return [
            greedy(f"j{at}", beginning + tokens(draw, length, vocabulary), self.output)
            for at, length in enumerate(lengths)
        ]


@dataclass(frozen=True)
class Run:
    """One load, all of whose requests came at once."""

    seconds: float
    latencies: dict[str, float]  # seconds from the beginning to each request's last token
    output_tokens: int
    steps: int
    decode_steps: list[float]  # seconds of those in which every request decoded one token

    @property
    def tokens_per_s(self) -> float:
        return self.output_tokens / self.seconds

    @property
    def mean_latency(self) -> float:
        return sum(self.latencies.values()) / len(self.latencies)


def tokens(draw: random.Random, count: int, vocabulary: int) -> list[int]:
    return [draw.randrange(vocabulary) for _ in range(count)]


def requests_of(load: Load, vocabulary: int) -> list[Request]:
    return [greedy(str(at), prompt, load.output) for at, prompt in enumerate(load.prompts(vocabulary))]


def greedy(request_id: str, prompt: list[int], output: int) -> Request:
    sampling = SamplingParams(temperature=0, max_tokens=output, ignore_eos=True, logprobs=None)
    return Request(request_id, prompt, sampling)


def run(engine: Engine, requests: Sequence[Request], after_step: Callable[[StepOutput], None] | None = None) -> Run:
    """Submit `requests`, and step until the last has ended; `after_step`, if any, looks on."""
    latencies: dict[str, float] = {}
    decode_steps: list[float] = []
    output_tokens = steps = 0
    before = start = time.perf_counter()
    for request in requests:
        engine.submit(request)
    while engine.has_work:
        output = engine.step()
        now = time.perf_counter()
        assert not output.failed, output.failed[0].message
        if output.counts.decoding == len(requests):
            decode_steps.append(now - before)
        latencies |= {delta.request_id: now - start for delta in output.deltas if delta.finish_reason}
        output_tokens += len(output.deltas)
        steps += 1
        if after_step is not None:
            after_step(output)
        before = time.perf_counter()
    return Run(before - start, latencies, output_tokens, steps, decode_steps)
