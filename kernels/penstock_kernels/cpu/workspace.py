"""What the layers of one model share: memory that every step uses again, and the way to the kernels.

Most of what a small step costs beside its kernels is Python between them. A step of a shape that was seen before need
not go through it: `recorded` writes down which kernels ran on which addresses, and `run_program` runs them again, all
in one call, on what then lies at those addresses.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penstock_kernels.cpu.attention import attend
from penstock_kernels.cpu.compiled import part
from penstock_kernels.cpu.linear import multiply, multiply_e4m3, multiply_few_bits, multiply_int8
from penstock_kernels.cpu.rounding import round_rows, round_rows_to_e4m3, take_columns
from penstock_kernels.cpu.rows import norm_rows, turn_and_store

PLACELESS = (
    norm_rows, round_rows, round_rows_to_e4m3, take_columns, multiply, multiply_int8, multiply_few_bits, multiply_e4m3,
)  # fmt: skip
NORM, ROUND, ROUND_TO_E4M3, TAKE, MULTIPLY, MULTIPLY_INT8, MULTIPLY_FEW_BITS, MULTIPLY_E4M3, TURN, ATTEND = range(10)
LINE = 21  # numbers: which kernel, and its arguments

Program = NDArray[np.int64]  # [kernels, LINE]


class Places(NamedTuple):
    """Where the tokens of a step belong."""

    pages: NDArray[np.int32]  # [rows, pages], the page table
    rows: NDArray[np.int64]  # [tokens], into `pages`
    positions: NDArray[np.int64]  # [tokens]
    slots: NDArray[np.int64]  # [tokens], in the pool


class Workspace:
    """Memory by name, and kernels by number."""

    def __init__(self) -> None:
        self.generation = 0  # grows when memory moves: programs of another generation run on addresses long gone
        self._memory: dict[tuple[str, int, torch.dtype], Tensor] = {}
        self._views: dict[tuple[str, int, int, torch.dtype], Tensor] = {}
        self._places: Places | None = None
        self._lines: list[tuple[int, ...]] | None = None

    def take(self, name: str, rows: int, width: int, dtype: torch.dtype) -> Tensor:
        """[rows, width], whatever it holds. The next that takes the same name overwrites it."""
        view = self._views.get((name, rows, width, dtype))
        return self._view(name, rows, width, dtype) if view is None else view

    def place(self, places: Places) -> None:
        """Where the tokens of this step belong, for the kernels that ask."""
        self._places = places

    def launch(self, kernel: int, *numbers: int) -> None:
        """Run a kernel: TURN and ATTEND on this step's places."""
        if self._lines is not None:
            self._lines.append((kernel, *numbers))
        if kernel == TURN:
            turn_and_store(*numbers, self._here.positions, self._here.slots)
        elif kernel == ATTEND:
            attend(*numbers, self._here.pages, self._here.rows, self._here.positions)
        else:
            PLACELESS[kernel](*numbers)

    @contextmanager
    def recorded(self) -> Iterator[list[Program]]:
        """Write down what is launched; the list holds the program afterwards."""
        programs: list[Program] = []
        self._lines = []
        try:
            yield programs
            programs.append(np.array([(*line, *[0] * (LINE - len(line))) for line in self._lines], np.int64))
        finally:
            self._lines = None

    def run(self, program: Program) -> None:
        """Launch again all that was recorded, on this step's places."""
        run_program(program, *self._here)

    @property
    def _here(self) -> Places:
        if self._places is None:
            raise RuntimeError("no step has been placed")
        return self._places

    def _view(self, name: str, rows: int, width: int, dtype: torch.dtype) -> Tensor:
        memory = self._memory.get((name, width, dtype))
        if memory is None or len(memory) < rows:
            memory = torch.empty(1 << (rows - 1).bit_length(), width, dtype=dtype)
            self._memory[name, width, dtype] = memory
            self._views = {key: view for key, view in self._views.items() if (key[0], *key[2:]) != (name, width, dtype)}
            self.generation += 1
        self._views[name, rows, width, dtype] = memory[:rows]
        return self._views[name, rows, width, dtype]


@part
def run_program(program: Any, pages: Any, rows: Any, positions: Any, slots: Any) -> None:
    """Run each line's kernel."""
    for at in range(len(program)):
        n = program[at]
        if n[0] == NORM:
            norm_rows(n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9])
        elif n[0] == ROUND:
            round_rows(n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9])
        elif n[0] == MULTIPLY:
            multiply(n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9], n[10], n[11], n[12], n[13])
        elif n[0] == MULTIPLY_INT8:
            multiply_int8(
                n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9], n[10], n[11], n[12], n[13], n[14], n[15]
            )  # fmt: skip
        elif n[0] == MULTIPLY_FEW_BITS:
            multiply_few_bits(
                n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9], n[10], n[11], n[12], n[13], n[14], n[15], n[16],
                n[17], n[18], n[19], n[20],
            )  # fmt: skip
        elif n[0] == MULTIPLY_E4M3:
            multiply_e4m3(
                n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9], n[10], n[11], n[12], n[13], n[14], n[15], n[16],
                n[17], n[18],
            )  # fmt: skip
        elif n[0] == ROUND_TO_E4M3:
            round_rows_to_e4m3(n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8])
        elif n[0] == TAKE:
            take_columns(n[1], n[2], n[3], n[4], n[5], n[6], n[7])
        elif n[0] == TURN:
            turn_and_store(
                n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9], n[10], n[11], n[12], n[13], n[14], n[15],
                positions, slots,
            )  # fmt: skip
        else:
            attend(
                n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9], n[10], n[11], n[12], n[13], n[14], n[15], n[16],
                n[17], n[18], pages, rows, positions,
            )  # fmt: skip
