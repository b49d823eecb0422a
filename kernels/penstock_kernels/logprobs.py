"""How likely the chosen tokens were, and whether a row of logits means anything."""

import torch
from torch import Tensor


def chosen_logprobs(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Natural log probabilities of `tokens` [rows] int64 under `logits` [rows, vocabulary] float32, both [rows].

    The second, bool, says whether a row's largest logit is a finite number; where it is not, the first means nothing.
    """
    total = torch.logsumexp(logits, dim=-1)
    own = logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return own - total, logits.amax(dim=-1).isfinite()
