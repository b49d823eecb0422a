"""What the forward pass needs to know of each running generation, as arrays indexed by its row.

The scheduler writes a row when a generation is admitted or its pages change; the runner reads whole columns at once,
so a step costs no Python per request in the forward pass.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock_engine.page_allocator import NULL_PAGE
from penstock_engine.request import Generation


class RowTables:
    """Columns over `rows` rows. `pages[row, i]` is the page of tokens [i * page_size, (i + 1) * page_size)."""

    def __init__(self, rows: int, pages_per_row: int, page_size: int) -> None:
        self.page_size = page_size
        self.pages: NDArray[np.int32] = np.full((rows, pages_per_row), NULL_PAGE, np.int32)
        self.temperature = np.zeros(rows, np.float32)
        self.top_k = np.zeros(rows, np.int64)
        self.top_p = np.ones(rows, np.float32)
        self.min_p = np.zeros(rows, np.float32)
        self.penalised = np.zeros(rows, np.bool_)
        self.repetition_penalty = np.ones(rows, np.float32)
        self.presence_penalty = np.zeros(rows, np.float32)
        self.frequency_penalty = np.zeros(rows, np.float32)
        self.counted = np.zeros(rows, np.int64)  # tokens that `penalties` has counted; written there, 0 here
        self.biased = np.zeros(rows, np.bool_)
        self.bias_ids = np.zeros((rows, 1), np.int64)  # rectangular: what is over adds 0 to token 0
        self.bias_values = np.zeros((rows, 1), np.float32)
        self.stop_ids = np.zeros((rows, 1), np.int64)  # rectangular: what is over repeats the last
        self.min_tokens = np.zeros(rows, np.int64)  # 0 too where there is no stop id to hold back
        self.logprobs = np.full(rows, -1, np.int64)  # -1: none wanted
        self.seed = np.zeros(rows, np.uint64)
        self.choice = np.zeros(rows, np.uint32)
        self.prompt_len = np.zeros(rows, np.int64)
        self._free = list(range(rows - 1, -1, -1))

    def admit(self, generation: Generation) -> None:
        """Give `generation` a row and fill it. There are as many rows as may run at once."""
        row = generation.row = self._free.pop()
        sampling = generation.request.sampling
        self.temperature[row] = sampling.temperature
        self.top_k[row] = sampling.top_k
        self.top_p[row] = sampling.top_p
        self.min_p[row] = sampling.min_p
        self._admit_adjustments(generation)
        self.logprobs[row] = -1 if sampling.logprobs is None else sampling.logprobs
        self.seed[row] = generation.seed
        self.choice[row] = generation.choice
        self.prompt_len[row] = generation.prompt_len
        self.set_pages(generation, 0)

    def _admit_adjustments(self, generation: Generation) -> None:
        row, sampling = generation.row, generation.request.sampling
        self.penalised[row] = sampling.penalises
        self.repetition_penalty[row] = sampling.repetition_penalty
        self.presence_penalty[row] = sampling.presence_penalty
        self.frequency_penalty[row] = sampling.frequency_penalty
        self.counted[row] = 0
        bias, stops = sampling.logit_bias, list(generation.stop_ids)
        self.biased[row] = bool(bias)
        self.bias_ids = _with_row(self.bias_ids, row, [token for token, _ in bias], 0)
        self.bias_values = _with_row(self.bias_values, row, [value for _, value in bias], 0.0)
        self.min_tokens[row] = sampling.min_tokens if stops else 0
        if stops:
            self.stop_ids = _with_row(self.stop_ids, row, stops, stops[-1])

    @property
    def free_rows(self) -> int:
        return len(self._free)

    def set_pages(self, generation: Generation, start: int) -> None:
        """Copy `generation`'s pages from index `start` on into its row."""
        self.pages[generation.row, start : len(generation.pages)] = generation.pages[start:]

    def release(self, generation: Generation) -> None:
        self.pages[generation.row] = NULL_PAGE
        self._free.append(generation.row)
        generation.row = -1


def _with_row(column: NDArray[Any], row: int, values: list[Any], fill: float) -> NDArray[Any]:
    """`column` [rows, width] with `values` in `row` and at least one `fill` after them: widening repeats it."""
    lacking = len(values) + 1 - column.shape[1]
    if lacking > 0:
        column = np.pad(column, ((0, 0), (0, lacking)), mode="edge")
    column[row] = fill
    column[row, : len(values)] = values
    return column
