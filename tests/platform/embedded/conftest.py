"""What the tests of the embedded services share: real processes on state folders of their own."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from penstock.embedded import EmbeddedServices


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """A new state folder. Not below pytest's own, which no other user can pass through."""
    folder = Path(tempfile.mkdtemp(prefix="penstock-test-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def services() -> Iterator[EmbeddedServices]:
    """PostgreSQL and Redis, running while one module's tests do."""
    folder = Path(tempfile.mkdtemp(prefix="penstock-test-"))
    with EmbeddedServices(folder, mlflow=False, durable=False) as running:
        yield running
    shutil.rmtree(folder)
