"""Whether one request's numbers depend on its neighbours: tried out before an engine promises that they do not.

The same tokens are run alone, beside others, and in pieces; the last one's logits must come out alike to the bit.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from penstock_engine.batch import ScheduleBatch
from penstock_engine.errors import InvalidConfig
from penstock_engine.request import Generation, Request
from penstock_engine.tables import RowTables

Forward = Callable[[ScheduleBatch, RowTables], Tensor]  # logits of each run that reaches its end, in order
LENGTHS = (37, 20, 5)  # of the one looked at, and of its neighbours: three pages at most


def check_determinism(forward: Forward, *, vocab_size: int, page_size: int, pages: int) -> None:
    """Uses pages 1 to 9 of the pool, or as many as there are. Raises InvalidConfig."""
    each = min(-(-max(LENGTHS) // page_size), pages // len(LENGTHS))
    if each < 1:
        raise InvalidConfig("deterministic", f"needs a pool of {len(LENGTHS)} pages at least, to be tried out")
    group = [_generation(at, min(length, each * page_size), each, vocab_size) for at, length in enumerate(LENGTHS)]
    tables = RowTables(len(group), each, page_size)
    for generation in group:
        tables.admit(generation)
    first, length = group[0], len(group[0].tokens)
    alone = _last_logits(forward, tables, [(first, 0, length)])
    for name, steps in {
        "beside others": [[(group[1], 0, len(group[1].tokens)), (first, 0, length), (group[2], 0, 1)]],
        "in pieces": [[(first, 0, length // 3)], [(first, length // 3, length - 1 - length // 3)]],
    }.items():
        for step in steps:
            logits = _last_logits(forward, tables, step)
        if name == "in pieces":
            logits = _last_logits(forward, tables, [(group[2], 1, 1), (first, length - 1, 1)])
        if not torch.equal(alone, logits):
            remedy = f"this model's numbers are not the same alone and {name} on this machine; serve it without"
            raise InvalidConfig("deterministic", remedy)


def _generation(at: int, length: int, pages: int, vocab_size: int) -> Generation:
    tokens = [(7 * at + 13 * place * place + 1) % vocab_size for place in range(length)]
    generation = Generation(Request("", tokens), 0, 0, tokens, prompt_len=length, limit=0, stop_ids=frozenset(), seed=0)
    generation.pages = list(range(1 + at * pages, 1 + (at + 1) * pages))
    return generation


def _last_logits(forward: Forward, tables: RowTables, runs: Sequence[tuple[Generation, int, int]]) -> Tensor:
    """Run (generation, first token, tokens) in one step; the logits of the last run that reaches its end."""
    batch = ScheduleBatch(0)
    for generation, start, count in runs:
        generation.computed_len = start
        batch.add(generation, count)
    return forward(batch, tables)[max(len(batch.sampled) - 1, 0)].clone()
