"""Which tokens the grammars of a step's outputs let come next, computed while the model runs.

    run:      forward ........................ | choose
    thread:   advance matchers, fill masks ... |

What may come next depends on tokens that are known before the forward pass begins, so both go on at once. Where steps
overlap, the last of them is known only after its launch: the masks are begun then, while a GPU still runs the model.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock_engine.request import Generation


@dataclass(frozen=True, slots=True)
class Masks:
    """For those of a step's sampled generations that have a grammar."""

    at: NDArray[np.int64]  # indices among the sampled
    allowed: NDArray[np.bool_]  # [len(at), vocabulary]
    broken: dict[int, str]  # by index: what is wrong with a grammar that nothing can follow


class MaskBuilder:
    """A thread of its own for masks, begun with the first grammar. The generations' matchers belong to it."""

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary = vocabulary
        self._thread: ThreadPoolExecutor | None = None

    def begin(self, sampled: list[Generation]) -> "Future[Masks] | None":
        """Start on the masks of `sampled`; None where none has a grammar."""
        constrained = [at for at, each in enumerate(sampled) if each.matcher is not None]
        if not constrained:
            return None
        self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="grammar-masks")
        return self._thread.submit(self._build, sampled, constrained)

    def _build(self, sampled: list[Generation], constrained: list[int]) -> Masks:
        bits = np.zeros((len(constrained), -(-self._vocabulary // 32)), np.int32)
        broken: dict[int, str] = {}
        for row, at in zip(bits, constrained, strict=True):
            if problem := _fill(sampled[at], row):
                broken[at] = problem
                row[:] = -1  # some token must be chosen; nobody will see it
        allowed = np.unpackbits(bits.view(np.uint8), axis=1, count=self._vocabulary, bitorder="little")
        return Masks(np.array(constrained), allowed.view(np.bool_), broken)


def _fill(generation: Generation, bits: NDArray[np.int32]) -> str:
    """The problem there is, or nothing."""
    matcher = generation.matcher
    assert matcher is not None  # it is one of the constrained
    matcher.advance(generation.tokens[generation.prompt_len :])
    matcher.fill(bits)
    return matcher.problem or ("" if bits.any() else "no token can follow")
