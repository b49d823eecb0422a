"""Where packed weights lie."""

from pathlib import Path

import pytest
import torch
from penstock_kernels.cpu.memory import HUGE_PAGE, lasting
from torch import Tensor

SMAPS = Path("/proc/self/smaps")
THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def flags_at(tensor: Tensor) -> list[str]:
    """What Linux says of the mapping that holds `tensor`: `hg` for huge pages advised, `sh` for shared."""
    inside = False
    for line in SMAPS.read_text().splitlines():
        head = line.split()[0]
        if "-" in head and not head.endswith(":"):
            start, end = (int(each, 16) for each in head.split("-"))
            inside = start <= tensor.data_ptr() < end
        elif inside and head == "VmFlags:":
            return line.split()[1:]
    raise AssertionError("no mapping holds the tensor")


@pytest.mark.skipif(not THP.exists(), reason="this system has no transparent huge pages")
def test_large_weights_lie_on_huge_pages_of_their_own() -> None:
    weights = torch.arange(HUGE_PAGE, dtype=torch.int32)
    kept = lasting(weights)
    assert torch.equal(kept, weights)
    assert kept.data_ptr() % HUGE_PAGE == 0
    assert "hg" in flags_at(kept)
    assert "sh" not in flags_at(kept)  # shared memory is given small pages, advised or not


def test_small_weights_are_copied() -> None:
    weights = torch.ones(100)
    kept = lasting(weights)
    weights.zero_()
    assert kept.sum() == 100
