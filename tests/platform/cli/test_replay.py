"""`penstock replay` and `penstock replays`, against the real application."""

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from penstock import Client
from penstock.cli.replay import moment
from penstock.db import Database
from penstock.replay.tending import ReplayTender

from tests.platform.api.conftest import Worker
from tests.platform.cli.conftest import Call
from tests.platform.cli.test_bulk import as_operator as as_operator


@pytest.fixture
def tended(database: Database, connected: Client) -> Iterator[None]:
    """Replays are worked off while the test runs."""
    tender, stop = ReplayTender(database, sweep_seconds=1), threading.Event()
    thread = threading.Thread(target=tender.run, args=(stop,))
    thread.start()
    yield
    stop.set()
    thread.join()


def test_a_replay_is_followed_to_its_report(as_operator: Call, tended: None, connected: Client, worker: Worker) -> None:
    connected.jobs.submit(model="tiny", prompt="hello")
    worker.claim()
    worker.finish()  # with no token
    found = as_operator("replay", "--model", "tiny:1", "--from", "yesterday", "--limit", "5")
    assert found.exit_code == 0, found.output
    assert "tiny: version 1 on the jobs of version 1" in found.stdout
    assert "| its answer has no token | 1 |" in found.stdout
    replay_id = found.stderr.split()[0]
    shown = as_operator("replays", "show", replay_id, "--json")
    assert json.loads(shown.stdout)["replay"]["lost"] == 1
    assert f"{replay_id}  completed" in as_operator("replays", "list").stdout
    refused = as_operator("replays", "cancel", replay_id)
    assert refused.exit_code == 1
    assert "is completed" in refused.stderr


def test_one_that_nobody_works_at_can_be_left_and_cancelled(as_operator: Call, worker: Worker) -> None:
    begun = as_operator("replay", "--model", "tiny", "--detach")
    replay_id = begun.stdout.strip()
    assert as_operator("replays", "cancel", replay_id).stdout == f"{replay_id} cancelled\n"
    assert as_operator("replay", "--model", "other").exit_code == 1


def test_days_begin_at_midnight() -> None:
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    assert moment("yesterday") in (today - timedelta(days=1), today)  # should midnight pass just now
    assert moment("2026-01-01T00:00:00Z") == datetime(2026, 1, 1, tzinfo=UTC)
