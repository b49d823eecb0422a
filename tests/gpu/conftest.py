"""Nothing here needs a service: these tests run on a bare GPU machine, by `make gpu-check`."""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def a_gpu_is_there() -> None:
    """A machine without a GPU fails: these tests are collected only where one is expected."""
    assert torch.cuda.is_available(), "these tests need a CUDA device"
