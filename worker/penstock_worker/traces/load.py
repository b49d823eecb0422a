"""A ragged load, for a look at how an engine schedules a model on this machine."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import log

from penstock_engine import Engine, Request, SamplingParams

SIGMA = 1.0  # of the lognormal lengths: the longest of a hundred is some ten times the median


@dataclass(frozen=True, slots=True)
class RaggedLoad:
    """Requests whose prompts and outputs have lognormal lengths around these medians, in tokens.

    All begin with the same `shared` tokens. One comes every `every` steps; 0 is all at once.
    """

    requests: int
    prompt: int
    output: int
    shared: int = 0
    every: float = 0
    seed: int = 0

    def make(self, vocab_size: int, max_model_len: int) -> Iterator[Request]:
        """The same requests for the same arguments; the longest are cut to the context."""
        draw = random.Random(self.seed)
        stem = _tokens(draw, min(self.shared, max_model_len // 2), vocab_size)
        for at in range(self.requests):
            prompt = stem + _tokens(draw, _length(draw, self.prompt), vocab_size)
            prompt = prompt[: max_model_len * 3 // 4]
            output = min(_length(draw, self.output), max_model_len - len(prompt))
            yield Request(f"r{at}", prompt, SamplingParams(temperature=0, max_tokens=output, ignore_eos=True))

    def run(self, engine: Engine, on_end: Callable[[int], None]) -> None:
        """Put it through `engine`; `on_end` is told, after each step, how many have ended in it."""
        waiting = list(self.make(engine.model_config.vocab_size, engine.max_model_len))[::-1]
        submitted = step = 0
        while waiting or engine.has_work:
            while waiting and submitted * self.every <= step:
                engine.submit(waiting.pop())
                submitted += 1
            on_end(len(engine.step().measures))
            step += 1


def _length(draw: random.Random, median: int) -> int:
    return max(1, round(draw.lognormvariate(log(median), SIGMA)))


def _tokens(draw: random.Random, count: int, vocab_size: int) -> list[int]:
    return [draw.randrange(vocab_size) for _ in range(count)]
