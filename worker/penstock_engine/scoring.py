"""Log probabilities of tokens that are given: the prompt's; and whole distributions, for who reads them.

The logits come from the prefill itself, so there are never more than a step's token budget of them. What is told of
them goes to the host as one tensor for each run, and becomes lists where somebody wants lists.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from penstock_kernels import logprobs as definition
from penstock_kernels.cpu import support
from torch import Tensor

from penstock_engine.batch import ScoredRun
from penstock_engine.request import Reader, RunScores
from penstock_engine.staging import send

ROWS_AT_ONCE = 64  # so that what torch computes from the logits takes little beside them

Find = Callable[[Tensor, Tensor, int], Tensor]  # as `penstock_kernels.logprobs.likeliest`


class Scorer:
    """Reads scores off logits."""

    def __init__(self, device: torch.device, kernels: Literal["auto", "torch", "compiled"]) -> None:
        self._device = device
        compiled = device.type == "cpu" and kernels != "torch" and not support.lacking()
        self._find = _compiled() if compiled else _by_definition
        self.kernel = "compiled for AVX-512" if compiled else "torch"

    def score(self, logits: Tensor, runs: list[ScoredRun]) -> list[Tensor]:
        """`logits` [rows, vocabulary] (float32) hold a row for each target of each run in order, then padding.

        For each run, on the device, what `read_scores` reads.
        """
        scores, first = [], 0
        for run in runs:
            scores.append(self._score_run(logits[first : first + len(run.targets)], run))
            first += len(run.targets)
        return scores

    def _score_run(self, logits: Tensor, run: ScoredRun) -> Tensor:
        (targets,) = send([np.array(run.targets, np.int64)], self._device)
        if run.reader is not None:
            _read_out(logits, run.position, run.reader)
        return self._find(logits, targets, run.tops)


def read_scores(packed: list[Tensor]) -> list[RunScores]:
    """What `Scorer.score` returned, once it is on the host."""
    return [_unpacked(each) for each in packed]


def _unpacked(packed: Tensor) -> RunScores:
    columns = packed.numpy()
    tops = columns.shape[1] // 2
    values = columns[:, : 1 + tops].view(np.float32)
    return RunScores(values[:, 0], columns[:, 1 + tops :], values[:, 1:])


def _read_out(logits: Tensor, position: int, reader: Reader) -> None:
    for rows in torch.split(logits, ROWS_AT_ONCE):
        reader(position, torch.log_softmax(rows, dim=-1))
        position += len(rows)


def _by_definition(logits: Tensor, targets: Tensor, tops: int) -> Tensor:
    pieces = zip(torch.split(logits, ROWS_AT_ONCE), torch.split(targets, ROWS_AT_ONCE), strict=True)
    return torch.cat([definition.likeliest(rows, wanted, tops) for rows, wanted in pieces])


def _compiled() -> Find:
    from penstock_kernels.cpu.likeliest import likeliest  # where compiled kernels run, and not before

    return likeliest
