"""The command line, called in this process, against the real application."""

import logging
from collections.abc import Callable, Iterator

import pytest
import structlog
from click.testing import CliRunner, Result
from penstock.cli import main

from tests.platform.client.real import api_key, app, connected, url, worker

__all__ = ["api_key", "app", "connected", "url", "worker"]

Call = Callable[..., Result]


@pytest.fixture(autouse=True)
def quiet_server() -> Iterator[None]:
    """The application runs in this process: its log lines must not mix with the command's output."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Call:
    """Calls `penstock` with these arguments, without a server in the environment."""
    monkeypatch.delenv("PENSTOCK_URL", raising=False)
    monkeypatch.delenv("PENSTOCK_API_KEY", raising=False)

    def run(*arguments: str, stdin: str = "") -> Result:
        return CliRunner().invoke(main, list(arguments), input=stdin)

    return run


@pytest.fixture
def connected_call(call: Call, url: str, api_key: str, monkeypatch: pytest.MonkeyPatch) -> Call:
    """The same, with the real application's address and a key in the environment."""
    monkeypatch.setenv("PENSTOCK_URL", url)
    monkeypatch.setenv("PENSTOCK_API_KEY", api_key)
    return call
