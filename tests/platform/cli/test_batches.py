"""`penstock batch`, against the real application."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from penstock import Client
from penstock.db import Database
from penstock.settings import Settings
from redis import Redis

from tests.platform.api.conftest import Worker
from tests.platform.batches.conftest import as_jsonl, native
from tests.platform.batches.serving import served, workshop_of
from tests.platform.cli.conftest import Call


@pytest.fixture
def serving(worker: Worker, settings: Settings, database: Database, redis: Redis) -> Iterator[None]:
    with served(workshop_of(settings, database, redis), worker):
        yield


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(as_jsonl([native(1), native(2, "fail"), native(3)]))
    return path


@pytest.mark.usefixtures("serving")
def test_a_batch_is_watched_read_and_tried_again(connected_call: Call, source: Path, tmp_path: Path) -> None:
    watched = connected_call("batch", "submit", str(source), "--watch", "--metadata", "a=b")
    assert watched.exit_code == 1, watched.output
    batch_id = watched.stdout.strip()
    assert "completed: 2 of 3 succeeded, 1 failed" in watched.stderr
    assert connected_call("batch", "watch", batch_id).exit_code == 1

    results = connected_call("batch", "results", batch_id).stdout.splitlines()
    assert sorted(json.loads(line)["line"] for line in results) == [1, 2, 3]
    connected_call("batch", "results", batch_id, "--output", str(tmp_path / "out"))
    assert [json.loads(line)["line"] for line in (tmp_path / "out").read_text().splitlines()] == [1, 3]
    again = connected_call("batch", "retry-failed", batch_id, "--json")
    assert json.loads(again.stdout)["retry_of"] == batch_id
    assert batch_id in connected_call("batch", "list").stdout
    assert json.loads(connected_call("batch", "get", batch_id, "--json").stdout)["metadata"] == {"a": "b"}


@pytest.mark.usefixtures("serving")
def test_what_is_wrong_with_lines_is_shown(connected_call: Call, tmp_path: Path) -> None:
    source = tmp_path / "lines.jsonl"
    source.write_bytes(as_jsonl([native(1), native(1), native(2, "")]))
    failed = connected_call("batch", "submit", str(source), "--watch")
    assert failed.exit_code == 1
    assert "line 2: custom_id: 'id-1' is line 1's already" in failed.stderr
    assert "line 3: body.input.prompt:" in failed.stderr

    skipped = connected_call("batch", "submit", str(source), "--watch", "--skip-invalid")
    assert "completed: 1 of 3 succeeded, 2 invalid" in skipped.stderr


def test_a_batch_is_changed(connected_call: Call, connected: Client, worker: Worker, source: Path) -> None:
    batch_id = connected_call("batch", "submit", str(source), "--priority", "3").stdout.strip()
    assert connected.batches.get(batch_id).priority == 3
    connected_call("batch", "prioritize", batch_id, "--", "-5")
    assert connected.batches.get(batch_id).priority == -5
    assert connected_call("batch", "pause", batch_id).exit_code == 0
    assert connected_call("batch", "resume", batch_id).exit_code == 0
    assert "cancelling" in connected_call("batch", "cancel", batch_id).stdout
    refused = connected_call("batch", "pause", batch_id)
    assert (refused.exit_code, "nothing can be changed" in refused.stderr) == (1, True)
    assert "has no output file" in connected_call("batch", "results", batch_id, "-o", "nowhere").stderr
