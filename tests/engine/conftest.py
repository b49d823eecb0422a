"""Models of this folder's tests, each made once."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.engine.tiny import TinyModel, make_tiny

MakeModel = Callable[..., TinyModel]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """`models(kind, **config)`: a tiny model, the same one for the same arguments."""
    made: dict[str, TinyModel] = {}

    def make(kind: str = "llama", **overrides: Any) -> TinyModel:
        key = repr((kind, sorted(overrides.items(), key=str)))
        if key not in made:
            made[key] = make_tiny(tmp_path_factory.mktemp(kind), kind, **overrides)
        return made[key]

    return make


@pytest.fixture(scope="session")
def llama(models: MakeModel) -> TinyModel:
    return models("llama")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
