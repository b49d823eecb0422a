"""From logits to token ids, for the whole batch at once, where the logits lie.

First what `penalties` makes of the logits. Then temperature, top-k, top-p on what top-k left, min-p, and a draw by
inverse CDF in id order with one uniform number per token: `penstock_kernels.sampling` defines it to the bit, and
`drawing` chooses who carries it out. Candidates that tie with the last one kept are kept too.

    choose      launches: nothing in it waits for the device, unless a request has a grammar, penalties or a bias
    Chosen      what comes of that, on the device; `packed` is all that the host is told, in one tensor to copy
    told        lists of it, once it is on the host
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penstock_engine.batch import StepSamples
from penstock_engine.drawing import drawing_on, logprobs_on
from penstock_engine.masks import Masks
from penstock_engine.penalties import Adjustments
from penstock_engine.request import Generation
from penstock_engine.staging import send
from penstock_engine.tables import RowTables

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Chosen:
    """One token for each row, on the device."""

    packed: Tensor  # int32 [lines, rows]: ids, then `Sampler._judged`
    wanted: Indices  # [rows], alternatives beside each token; -1: no log probability either
    broken: dict[int, str]  # by row: what is wrong with a grammar that nothing can follow

    def told(self, packed: Tensor) -> StepSamples:
        """What was chosen, as lists; `packed` is a copy of it on the host."""
        lines = packed.numpy()
        tops = max(0, len(lines) - 3) // 2
        own = lines[2].view(np.float32).tolist() if len(lines) > 2 else [0.0] * len(self.wanted)
        ids, values = lines[3 : 3 + tops].T, lines[3 + tops :].view(np.float32).T
        alternatives = {
            at: tuple(zip(ids[at, :count].tolist(), values[at, :count].tolist(), strict=True))
            for at, count in enumerate(self.wanted.tolist())
            if count > 0
        }
        return StepSamples(lines[0].tolist(), (lines[1] != 0).tolist(), own, alternatives, self.broken)


class Sampler:
    """Chooses tokens, and keeps each row's last one on the device, where the next step may read it."""

    def __init__(self, tables: RowTables, device: torch.device) -> None:
        self._tables = tables
        self._device = device
        self._draw, self._logprobs = drawing_on(device), logprobs_on(device)
        self._adjustments = Adjustments(tables)
        self.latest = torch.zeros(len(tables.temperature), dtype=torch.int64, device=device)  # [rows of the tables]

    def choose(self, logits: Tensor, generations: list[Generation], masks: Masks | None = None) -> Chosen:
        """One token per row of `logits` [rows, vocabulary] (float32) for the generation of the same index.

        Where a row's logits are not finite, its token means nothing, and it says so.
        """
        rows, output_index = self._places(generations)
        allowed = self._adjustments.apply(logits, generations, rows, output_index, masks)
        tokens = self._tokens(allowed, rows, output_index)
        wanted = self._tables.logprobs[rows]
        lines = [tokens.int().unsqueeze(0), *self._judged(logits, tokens, int(wanted.max()))]
        return Chosen(torch.cat(lines), wanted, {} if masks is None else masks.broken)

    def _places(self, generations: list[Generation]) -> tuple[Indices, Indices]:
        """Each one's row, and which token of its output this will be."""
        rows = np.fromiter((each.row for each in generations), np.int64, len(generations))
        lengths = np.fromiter((len(each.tokens) for each in generations), np.int64, len(generations))
        return rows, lengths - self._tables.prompt_len[rows]

    def _tokens(self, logits: Tensor, rows: Indices, output_index: Indices) -> Tensor:
        """The token ids [rows], which are noted as the rows' latest too."""
        tables = self._tables
        if not (tables.temperature[rows] > 0).any():
            places, tokens = send([rows], self._device)[0], logits.argmax(dim=-1)
        else:
            temperature, top_p, min_p = tables.temperature[rows], tables.top_p[rows], tables.min_p[rows]
            seed, choice = tables.seed[rows].view(np.int64), tables.choice[rows].astype(np.int64)
            floats, whole = (temperature, top_p, min_p), (tables.top_k[rows], seed, output_index, choice)
            places, *sent = send([rows, *floats, *whole], self._device)
            names = ("temperature", "top_p", "min_p", "top_k", "seed", "output_index", "choice")
            tokens = self._draw(logits, **dict(zip(names, sent, strict=True)))
        self.latest.index_copy_(0, places, tokens)
        return tokens

    def _judged(self, logits: Tensor, tokens: Tensor, tops: int) -> list[Tensor]:
        """Lines of int32: whether a row is finite; unless `tops` is -1, the model's natural log probabilities, as bits.

        First those of the chosen tokens; then the ids of the `tops` likeliest, and theirs.
        """
        if tops < 0:
            return [logits.amax(dim=-1).isfinite().int().unsqueeze(0)]  # the largest is NaN or infinite if any is
        own, finite = self._logprobs(logits, tokens)
        lines = [finite.int().unsqueeze(0), own.view(torch.int32).unsqueeze(0)]
        if tops > 0:
            values, ids = logits.topk(min(tops, logits.shape[-1]), dim=-1)
            total = torch.logsumexp(logits, dim=-1, keepdim=True)
            lines += [ids.int().T, (values - total).view(torch.int32).T]
        return lines
