"""How likely the chosen or given tokens were, what was likeliest, and whether a row of logits means anything."""

import torch
from torch import Tensor


def chosen_logprobs(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Natural log probabilities of `tokens` [rows] int64 under `logits` [rows, vocabulary] float32, both [rows].

    The second, bool, says whether a row's largest logit is a finite number; where it is not, the first means nothing.
    """
    total = torch.logsumexp(logits, dim=-1)
    own = logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return own - total, logits.amax(dim=-1).isfinite()


def likeliest(logits: Tensor, targets: Tensor, tops: int) -> Tensor:
    """Natural log probabilities of `targets` [rows] int64 under `logits` [rows, vocabulary] float32, and the likeliest.

    One int32 tensor [rows, 1 + 2 * tops]: the target's log probability and those of the `tops` likeliest tokens (all,
    where there are fewer), the likeliest first, as the bits of float32; then the ids of these. Where a row is not
    finite (it holds a NaN or +inf, or nothing above -inf), its log probabilities are NaN and its ids mean nothing.
    """
    total = torch.logsumexp(logits, dim=-1, keepdim=True)
    total = torch.where(total.isfinite(), total, torch.nan)
    values, ids = logits.topk(min(tops, logits.shape[-1]), dim=-1)
    found = torch.cat((logits.gather(-1, targets.unsqueeze(-1)), values), dim=-1) - total
    return torch.cat((found.view(torch.int32), ids.int()), dim=-1)
