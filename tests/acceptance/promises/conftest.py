"""One house for all promises of this folder that one process tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from penstock.db import Database
from penstock.settings import Settings

from tests.acceptance.promises.house import House, open_house
from tests.worker.conftest import model_folder

__all__ = ["model_folder"]  # a fixture


@pytest.fixture(scope="package")
def house(
    settings: Settings, migrated: Database, model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[House]:
    with open_house(settings, migrated, model_folder, tmp_path_factory.mktemp("house")) as house:
        yield house
