"""What the forward pass needs to know of each running generation, as arrays indexed by its row.

The scheduler writes a row when a generation is admitted or its pages change; the runner reads whole columns at once,
so a step costs no Python per request in the forward pass.
"""

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
        self.min_tokens = np.zeros(rows, np.int64)
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
        self.min_tokens[row] = sampling.min_tokens
        self.logprobs[row] = -1 if sampling.logprobs is None else sampling.logprobs
        self.seed[row] = generation.seed
        self.choice[row] = generation.choice
        self.prompt_len[row] = generation.prompt_len
        self.set_pages(generation, 0)

    def set_pages(self, generation: Generation, start: int) -> None:
        """Copy `generation`'s pages from index `start` on into its row."""
        self.pages[generation.row, start : len(generation.pages)] = generation.pages[start:]

    def release(self, generation: Generation) -> None:
        self.pages[generation.row] = NULL_PAGE
        self._free.append(generation.row)
        generation.row = -1
