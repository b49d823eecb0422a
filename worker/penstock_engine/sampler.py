"""From logits to token ids, for the whole batch at once.

Order of the filters, as `transformers` has it: temperature, then top-k, then top-p on what top-k left. Candidates
that tie with the last one kept are kept too, so the outcome does not depend on how a sort breaks ties. The draw is
inverse CDF in id order with one uniform number per token (see `philox`).
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penstock_engine.batch import StepSamples
from penstock_engine.philox import uniforms
from penstock_engine.request import Generation
from penstock_engine.tables import RowTables

NUCLEUS_PROBE = 1024  # a partial sort this wide nearly always covers top_p; the full one is 50 times dearer at 128k


def sample(logits: Tensor, generations: list[Generation], tables: RowTables) -> StepSamples:
    """Choose one token per row of `logits` [rows, vocabulary] (float32) for the generation of the same index."""
    rows = np.fromiter((each.row for each in generations), np.int64, len(generations))
    lengths = np.fromiter((len(each.tokens) for each in generations), np.int64, len(generations))
    output_index = lengths - tables.prompt_len[rows]
    allowed = _forbid_stops(logits, generations, output_index < tables.min_tokens[rows])
    best, chosen = allowed.max(dim=-1)
    drawn = np.flatnonzero(tables.temperature[rows] > 0)
    if len(drawn):
        _draw_into(chosen, allowed, drawn, rows[drawn], output_index[drawn], tables)
    logprobs, tops = _logprobs(logits, chosen, tables.logprobs[rows])
    return StepSamples(chosen.tolist(), best.isfinite().tolist(), logprobs, tops)


def _forbid_stops(logits: Tensor, generations: list[Generation], too_early: NDArray[np.bool_]) -> Tensor:
    """Rows that have not reached min_tokens cannot draw a stop id. `logits` itself stays as the model said."""
    if not too_early.any():
        return logits
    logits = logits.clone()
    for at in np.flatnonzero(too_early).tolist():
        logits[at, list(generations[at].stop_ids)] = -torch.inf
    return logits


def _draw_into(
    chosen: Tensor,
    logits: Tensor,
    drawn: NDArray[np.int64],
    rows: NDArray[np.int64],
    output_index: NDArray[np.int64],
    tables: RowTables,
) -> None:
    """Overwrite `chosen[drawn]` with tokens drawn at their temperature; the others stay greedy."""
    at = torch.from_numpy(drawn).to(logits.device)
    everyone = len(drawn) == len(chosen)
    noise = uniforms(tables.seed[rows], output_index, tables.choice[rows])
    chosen[at] = draw(
        logits if everyone else logits[at],
        temperature=_column(tables.temperature[rows], logits),
        top_k=_column(tables.top_k[rows], logits),
        top_p=_column(tables.top_p[rows], logits),
        noise=_column(noise, logits),
    )


def draw(logits: Tensor, *, temperature: Tensor, top_k: Tensor, top_p: Tensor, noise: Tensor) -> Tensor:
    """Token ids [rows] drawn from `logits` [rows, vocabulary]; the parameters are [rows, 1]."""
    probs = torch.softmax(logits / temperature, dim=-1)
    if bool((top_k > 0).any()) or bool((top_p < 1).any()):
        probs = torch.where(probs >= _smallest_kept(probs, top_k, top_p), probs, 0.0)
    cdf = probs.cumsum(dim=-1)
    ids = torch.searchsorted(cdf, noise * cdf[:, -1:], right=True)
    last_possible = torch.searchsorted(cdf, cdf[:, -1:])  # where rounding took the target to the total itself
    return torch.minimum(ids, last_possible).squeeze(-1)


def _smallest_kept(probs: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """The smallest probability [rows, 1] that both filters keep."""
    vocabulary = probs.shape[-1]
    limited = top_k > 0
    widest = int(top_k.max()) if bool((limited | (top_p >= 1)).all()) else NUCLEUS_PROBE
    width = min(max(widest, int(top_k.max()), 1), vocabulary)
    ranked = probs.topk(width, dim=-1).values
    if width < vocabulary and bool((~limited & (top_p < 1) & (ranked.sum(-1, keepdim=True) < top_p)).any()):
        ranked = probs.sort(dim=-1, descending=True).values
    last_of_k = ranked.gather(-1, (top_k.clamp(1, ranked.shape[-1]) - 1))
    ranked = torch.where(~limited | (ranked >= last_of_k), ranked, 0.0)
    total = torch.where(limited, ranked.sum(-1, keepdim=True), 1.0)
    before = ranked.cumsum(dim=-1) - ranked
    in_nucleus = (before < top_p * total) & (ranked > 0)
    smallest = torch.where(in_nucleus, ranked, torch.inf).amin(dim=-1, keepdim=True)
    return torch.where(limited | (top_p < 1), smallest, 0.0)


def _logprobs(
    logits: Tensor, chosen: Tensor, wanted: NDArray[np.int64]
) -> tuple[list[float], dict[int, tuple[tuple[int, float], ...]]]:
    """Natural log probabilities under the model's own distribution, and the alternatives where `wanted` > 0."""
    if (wanted < 0).all():
        return [0.0] * len(wanted), {}
    total = torch.logsumexp(logits, dim=-1, keepdim=True)
    own = (logits.gather(-1, chosen.unsqueeze(-1)) - total).squeeze(-1)
    tops: dict[int, tuple[tuple[int, float], ...]] = {}
    if (wanted > 0).any():
        values, ids = (logits - total).topk(min(int(wanted.max()), logits.shape[-1]), dim=-1)
        for at in np.flatnonzero(wanted > 0).tolist():
            count = int(wanted[at])
            tops[at] = tuple(zip(ids[at, :count].tolist(), values[at, :count].tolist(), strict=True))
    return own.tolist(), tops


def _column(values: NDArray[np.generic], like: Tensor) -> Tensor:
    return torch.from_numpy(values).to(like.device).unsqueeze(-1)
