"""A tiny model to compress, and tokens to calibrate by."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.engine.tiny import TinyModel, make_tiny

LENGTH = 32


def all_tensors(folder: Path) -> dict[str, Tensor]:
    """What a checkpoint holds, by name."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A random Llama of three blocks."""
    return make_tiny(tmp_path_factory.mktemp("tiny") / "model", "llama", intermediate_size=128)


@pytest.fixture(scope="session")
def tokens() -> Tensor:
    """Twelve random sequences."""
    return torch.randint(8, 199, (12, LENGTH), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "smaller"
