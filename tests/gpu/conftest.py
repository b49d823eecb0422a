"""Nothing here needs a service: these tests run on a bare GPU machine, by `make gpu-check`.

Inputs are fresh at each run, drawn from a seed that the header tells; `--gpu-seed N` draws them again. What kernels and
launchers allocate holds NaN, or the largest integer, until it is written.
"""

import os
import random
import zlib
from collections.abc import Iterator

import pytest
import torch

# Read when cuBLAS is first called. Without it each product in a test that fills memory warns of an order of sums.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
NO_DETERMINISTIC_FORM = "ignore:.*does not have a deterministic implementation"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--gpu-seed", type=int, default=None, help="draw the inputs that this seed drew before")


def pytest_configure(config: pytest.Config) -> None:
    """The only way to have torch fill new memory is to ask for deterministic forms, and to be told of what has none."""
    config.addinivalue_line("filterwarnings", NO_DETERMINISTIC_FORM)
    asked = config.getoption("--gpu-seed", default=None)
    config.stash[SEED] = random.SystemRandom().getrandbits(32) if asked is None else asked


SEED = pytest.StashKey[int]()


def pytest_report_header(config: pytest.Config) -> str:
    return f"inputs: --gpu-seed {config.stash[SEED]}"


@pytest.fixture(scope="session", autouse=True)
def a_gpu_is_there() -> None:
    """A machine without a GPU fails: these tests are collected only where one is expected."""
    assert torch.cuda.is_available(), "these tests need a CUDA device"


@pytest.fixture(autouse=True)
def fresh_inputs(request: pytest.FixtureRequest) -> None:
    """Each test's own, whichever tests run before it."""
    torch.manual_seed(request.config.stash[SEED] ^ zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """What is allocated without a value holds NaN, or the largest integer, until a kernel writes it."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
