"""A real receiver for webhooks."""

from collections.abc import Iterator

import pytest

from tests.platform.webhooks.receiver import Receiver, receiving


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as running:
        yield running
