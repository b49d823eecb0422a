"""Log probabilities of tokens that are given: the prompt's.

The logits come from the prefill itself, so there are never more than a step's token budget of them.
"""

import torch
from torch import Tensor

from penstock_engine.batch import RunScores, ScoredRun

ROWS_AT_ONCE = 64  # so that what is computed from the logits takes little beside them


def score(logits: Tensor, runs: list[ScoredRun]) -> list[RunScores]:
    """`logits` [rows, vocabulary] (float32) hold a row for each target of each run in order, then padding."""
    scores, first = [], 0
    for run in runs:
        scores.append(_score_run(logits[first : first + len(run.targets)], run))
        first += len(run.targets)
    return scores


def _score_run(logits: Tensor, run: ScoredRun) -> RunScores:
    scores = RunScores([], [])
    targets = torch.tensor(run.targets, device=logits.device).unsqueeze(-1)
    for rows, wanted in zip(torch.split(logits, ROWS_AT_ONCE), torch.split(targets, ROWS_AT_ONCE), strict=True):
        total = torch.logsumexp(rows, dim=-1, keepdim=True)
        scores.logprobs.extend((rows.gather(-1, wanted) - total).squeeze(-1).tolist())
        scores.top_logprobs.extend(_tops(rows, total, run.tops))
    return scores


def _tops(rows: Tensor, total: Tensor, count: int) -> list[tuple[tuple[int, float], ...]]:
    if not count:
        return [()] * len(rows)
    values, ids = rows.topk(min(count, rows.shape[-1]), dim=-1)
    pairs = zip(ids.tolist(), (values - total).tolist(), strict=True)
    return [tuple(zip(tokens, logprobs, strict=True)) for tokens, logprobs in pairs]
