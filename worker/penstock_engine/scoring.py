"""Log probabilities of tokens that are given: the prompt's; and whole distributions, for who reads them.

The logits come from the prefill itself, so there are never more than a step's token budget of them.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from penstock_engine.batch import RunScores, ScoredRun
from penstock_engine.request import Reader
from penstock_engine.staging import send

ROWS_AT_ONCE = 64  # so that what is computed from the logits takes little beside them


def score(logits: Tensor, runs: list[ScoredRun]) -> list[Tensor]:
    """`logits` [rows, vocabulary] (float32) hold a row for each target of each run in order, then padding.

    For each run, on the device: log probabilities [targets], and of the likeliest ids and log probabilities
    [targets, tops]. `read_scores` makes lists of them.
    """
    scores, first = [], 0
    for run in runs:
        scores += _score_run(logits[first : first + len(run.targets)], run)
        first += len(run.targets)
    return scores


def read_scores(tensors: list[Tensor]) -> list[RunScores]:
    """What `score` returned, once it is on the host."""
    runs = zip(tensors[::3], tensors[1::3], tensors[2::3], strict=True)
    return [RunScores(own.tolist(), list(_pairs(ids, values))) for own, ids, values in runs]


def _score_run(logits: Tensor, run: ScoredRun) -> list[Tensor]:
    targets = send([np.array(run.targets)], logits.device)[0].unsqueeze(-1)
    if run.reader is not None:
        _read_out(logits, run.position, run.reader)
    pieces = zip(torch.split(logits, ROWS_AT_ONCE), torch.split(targets, ROWS_AT_ONCE), strict=True)
    columns = zip(*(_score_rows(rows, wanted, run.tops) for rows, wanted in pieces), strict=True)
    return [torch.cat(column) for column in columns]


def _read_out(logits: Tensor, position: int, reader: Reader) -> None:
    for rows in torch.split(logits, ROWS_AT_ONCE):
        reader(position, torch.log_softmax(rows, dim=-1))
        position += len(rows)


def _score_rows(rows: Tensor, wanted: Tensor, tops: int) -> tuple[Tensor, Tensor, Tensor]:
    total = torch.logsumexp(rows, dim=-1, keepdim=True)
    values, ids = rows.topk(min(tops, rows.shape[-1]), dim=-1)
    return (rows.gather(-1, wanted) - total).squeeze(-1), ids, values - total


def _pairs(ids: Tensor, values: Tensor) -> Iterator[tuple[tuple[int, float], ...]]:
    for tokens, logprobs in zip(ids.tolist(), values.tolist(), strict=True):
        yield tuple(zip(tokens, logprobs, strict=True))
