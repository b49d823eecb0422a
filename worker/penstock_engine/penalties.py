"""What stands between the model's logits and the choice: bias, penalties, stop ids and grammars.

Order and definitions as `transformers` and vLLM have them: bias, repetition penalty (Keskar et al., "CTRL", 2019, over
prompt and output), frequency and presence penalty (over the output), minimum length; last, what a grammar allows.
Each touches only the rows that asked for it, all of them at once.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penstock_engine.masks import Masks
from penstock_engine.request import Generation
from penstock_engine.staging import send
from penstock_engine.tables import RowTables

Indices = NDArray[np.int64]


class Adjustments:
    """Turns what the model said into what may be chosen from."""

    def __init__(self, tables: RowTables) -> None:
        self._tables = tables
        self._said = Said(tables)

    def apply(
        self,
        logits: Tensor,
        generations: list[Generation],
        rows: Indices,
        output_index: Indices,
        masks: Masks | None = None,
    ) -> Tensor:
        """Adjusted `logits` [rows, vocabulary]; the given ones stay as they are, and come back if nobody asks."""
        tables = self._tables
        biased = np.flatnonzero(tables.biased[rows])
        penalised = np.flatnonzero(tables.penalised[rows])
        too_early = np.flatnonzero(output_index < tables.min_tokens[rows])
        if masks is None and not len(biased) + len(penalised) + len(too_early):
            return logits
        logits = logits.clone()
        if len(biased):
            self._add_bias(logits, biased, rows[biased])
        if len(penalised):
            self._said.catch_up([generations[at] for at in penalised.tolist()], rows[penalised], logits)
            self._said.penalise(logits, penalised, rows[penalised])
        if len(too_early):
            ids = tables.stop_ids[rows[too_early]]
            places = _on(logits, too_early).unsqueeze(-1), _on(logits, ids)
            # A number set by index would be copied to the device first, and waited for: this one is made there.
            logits.index_put_(places, logits.new_full((), -torch.inf))
        if masks is not None:
            at = _on(logits, masks.at)
            logits[at] = logits[at].masked_fill(~_on(logits, masks.allowed), -torch.inf)
        return logits

    def _add_bias(self, logits: Tensor, at: Indices, rows: Indices) -> None:
        ids, values = _on(logits, self._tables.bias_ids[rows]), _on(logits, self._tables.bias_values[rows])
        logits.index_put_((_on(logits, at).unsqueeze(-1), ids), values, accumulate=True)


class Said:
    """How often each token came in each row's output, and whether in its prompt; by row [rows, vocabulary].

    A pure function of the generation's tokens: `tables.counted` says how many of them are counted (0 after admission,
    so a resumed or preempted generation is counted anew). Memory is taken when the first request asks.
    """

    def __init__(self, tables: RowTables) -> None:
        self._tables = tables
        self._counts = torch.empty(0, 0, dtype=torch.int32)
        self._in_prompt = torch.empty(0, 0, dtype=torch.bool)

    def catch_up(self, generations: list[Generation], rows: Indices, like: Tensor) -> None:
        """Count what came since the last time: in steady decoding one token each."""
        if not len(self._counts):
            shape = len(self._tables.counted), like.shape[-1]
            self._counts = torch.zeros(shape, dtype=torch.int32, device=like.device)
            self._in_prompt = torch.zeros(shape, dtype=torch.bool, device=like.device)
        lengths = np.fromiter((len(each.tokens) for each in generations), np.int64, len(rows))
        counted = self._tables.counted[rows]
        anew = (counted == 0) | (lengths > counted + 1)
        for at in np.flatnonzero(anew).tolist():
            self._count_anew(generations[at])
        grown = (lengths > counted) & ~anew
        last = np.fromiter((each.tokens[-1] for each in generations), np.int64, len(rows))
        self._counts[_on(like, rows[grown]), _on(like, last[grown])] += 1
        self._tables.counted[rows] = lengths

    def penalise(self, logits: Tensor, at: Indices, rows: Indices) -> None:
        """Lower, in `logits[at]`, what was said in the rows of the same index."""
        tables, chosen, rows_here = self._tables, _on(logits, at), _on(logits, rows)
        scores, counts = logits[chosen], self._counts[rows_here]
        said = counts > 0
        factor = _on(logits, tables.repetition_penalty[rows]).unsqueeze(-1)
        lowered = torch.where(scores < 0, scores * factor, scores / factor)
        scores = torch.where(said | self._in_prompt[rows_here], lowered, scores)
        scores -= _on(logits, tables.frequency_penalty[rows]).unsqueeze(-1) * counts
        scores -= _on(logits, tables.presence_penalty[rows]).unsqueeze(-1) * said
        logits[chosen] = scores

    def _count_anew(self, generation: Generation) -> None:
        row, split = generation.row, generation.prompt_len
        ids = np.array(generation.tokens, np.int64)
        prompt, output = send([ids[:split], ids[split:]], self._counts.device)
        self._in_prompt[row].zero_().index_fill_(0, prompt, True)
        self._counts[row].zero_().index_add_(0, output, torch.ones_like(output, dtype=torch.int32))


def _on(like: Tensor, values: NDArray[np.generic]) -> Tensor:
    return send([values], like.device)[0]
