"""What a step's attention reads."""

import numpy as np
import pytest
import torch
from penstock_engine.layers.attention import plan_attention
from penstock_engine.tables import RowTables

PAGE = 16


def read_pages(starts: list[int], lens: list[int], window: int | None) -> list[list[int]]:
    """Indices of the context pages that each rectangle gathers; page i of row r is numbered 100 * r + i."""
    tables = RowTables(len(starts), 40, PAGE)
    tables.pages[:] = 100 * np.arange(len(starts))[:, None] + np.arange(40)
    rows, cpu = np.arange(len(starts)), torch.device("cpu")
    plan = plan_attention(rows, np.array(starts), np.array(lens), tables, cpu, torch.float32)
    return [rectangle.sight(window).pages.tolist() for rectangle in plan.rectangles]


@pytest.mark.parametrize(
    ("start", "count", "window", "first"),
    [(600, 1, None, 0), (600, 1, 1000, 0), (600, 1, 20, 36), (600, 1, 1, 37), (607, 1, 1, 37), (590, 18, 15, 36)],
)
def test_pages_before_the_window_are_not_read(start: int, count: int, window: int | None, first: int) -> None:
    [pages] = read_pages([start], [count], window)
    assert pages == list(range(first, (start + count - 1) // PAGE + 1))


def test_runs_of_one_rectangle_read_from_the_earliest_window_on() -> None:
    [pages] = read_pages([520, 600], [1, 1], 20)
    assert pages == [*range(31, 38), *range(131, 138)]


def test_a_mask_is_made_once_for_each_window() -> None:
    tables = RowTables(1, 4, PAGE)
    one = np.zeros(1, np.int64)
    [rectangle] = plan_attention(one, one + 40, one + 1, tables, torch.device("cpu"), torch.float32).rectangles
    assert rectangle.sight(8) is rectangle.sight(8)
    assert rectangle.sight(8).mask.isfinite().sum() == 8
    assert rectangle.sight(None).mask.isfinite().sum() == 41
