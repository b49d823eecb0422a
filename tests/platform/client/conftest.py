"""A client and the server that misbehaves towards it."""

from collections.abc import Iterator

import pytest
from penstock import Client
from penstock.client import backoff

from tests.platform.client.server import Misbehaving, misbehaving


@pytest.fixture
def server() -> Iterator[Misbehaving]:
    with misbehaving() as running:
        yield running


@pytest.fixture
def client(server: Misbehaving, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """A client that tries again at once, so that tests need not wait; how long it waits has tests of its own."""
    monkeypatch.setattr(backoff, "FIRST_SECONDS", 0.001)
    with Client(server.url, "psk_test_x", max_retries=3, patience=5.0) as connected:
        yield connected
