"""From logits to token ids, for the whole batch at once.

First what `penalties` makes of the logits. Then the filters, in the order of `transformers`: temperature, top-k,
top-p on what top-k left, min-p. Candidates that tie with the last one kept are kept too, so the outcome does not
depend on how a sort breaks ties. The draw is inverse CDF in id order with one uniform number per token (see `philox`).
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penstock_engine.batch import StepSamples
from penstock_engine.masks import Masks
from penstock_engine.penalties import Adjustments
from penstock_engine.philox import uniforms
from penstock_engine.request import Generation
from penstock_engine.tables import RowTables

# Widths of the partial sorts tried in turn for top-p: 64 candidates nearly always cover it, and on a 2-core AMD EPYC
# a full sort of one 128k row costs 10.8 ms where a partial one costs 0.2.
NUCLEUS_PROBES = (64, 1024)


def sample(
    logits: Tensor,
    generations: list[Generation],
    tables: RowTables,
    adjustments: Adjustments,
    masks: Masks | None = None,
) -> StepSamples:
    """Choose one token per row of `logits` [rows, vocabulary] (float32) for the generation of the same index."""
    rows = np.fromiter((each.row for each in generations), np.int64, len(generations))
    lengths = np.fromiter((len(each.tokens) for each in generations), np.int64, len(generations))
    output_index = lengths - tables.prompt_len[rows]
    finite = logits.amax(dim=-1).isfinite()  # the largest is NaN or infinite if any is
    if not bool(finite.all()):
        logits = logits.masked_fill(~finite.unsqueeze(-1), 0.0)  # its token means nothing, but must be one
    allowed = adjustments.apply(logits, generations, rows, output_index, masks)
    chosen = allowed.argmax(dim=-1)
    drawn = np.flatnonzero(tables.temperature[rows] > 0)
    if len(drawn):
        _draw_into(chosen, allowed, drawn, rows[drawn], output_index[drawn], tables)
    logprobs, tops = _logprobs(logits, chosen, tables.logprobs[rows])
    broken = {} if masks is None else masks.broken
    return StepSamples(chosen.tolist(), finite.tolist(), logprobs, tops, broken)


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
        min_p=_column(tables.min_p[rows], logits),
        noise=_column(noise, logits),
    )


def draw(logits: Tensor, *, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, noise: Tensor) -> Tensor:
    """Token ids [rows] drawn from `logits` [rows, vocabulary]; the parameters are [rows, 1]."""
    probs = torch.softmax(logits / temperature, dim=-1)
    if bool((top_k > 0).any()) or bool((top_p < 1).any()):
        probs = torch.where(probs >= _smallest_kept(probs, top_k, top_p), probs, 0.0)
    if bool((min_p > 0).any()):
        probs = torch.where(probs >= min_p * probs.amax(dim=-1, keepdim=True), probs, 0.0)
    cdf = probs.cumsum(dim=-1)
    total = cdf[:, -1:].contiguous()
    ids = torch.searchsorted(cdf, noise * total, right=True)
    last_possible = torch.searchsorted(cdf, total)  # where rounding took the target to the total itself
    return torch.minimum(ids, last_possible).squeeze(-1)


def _smallest_kept(probs: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """The smallest probability [rows, 1] that both filters keep; 0 where neither limits."""
    limited = top_k > 0
    ranked = _ranked(probs, top_k, top_p)
    last_of_k = ranked.gather(-1, top_k.clamp(1, ranked.shape[-1]) - 1)
    ranked = torch.where(~limited | (ranked >= last_of_k), ranked, 0.0)
    total = torch.where(limited, ranked.sum(-1, keepdim=True), 1.0)
    before = ranked.cumsum(dim=-1) - ranked
    in_nucleus = (before < top_p * total) & (ranked > 0)
    smallest = torch.where(in_nucleus, ranked, torch.inf).amin(dim=-1, keepdim=True)
    return torch.where(limited | (top_p < 1), smallest, 0.0)


def _ranked(probs: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """The largest probabilities of each row, falling: at least top_k of them, or enough to hold top_p."""
    vocabulary, widest = probs.shape[-1], int(top_k.max())
    unbounded = (top_k == 0) & (top_p < 1)
    for probe in NUCLEUS_PROBES:
        width = max(probe, widest)
        if width >= vocabulary:
            break
        ranked = probs.topk(width, dim=-1).values
        if not bool((unbounded & (ranked.sum(-1, keepdim=True) < top_p)).any()):
            return ranked
    return probs.sort(dim=-1, descending=True).values


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
