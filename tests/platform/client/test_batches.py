"""`client.files` and `client.batches` against the real application."""

import json
from pathlib import Path

import pytest
from penstock import Client
from penstock.client import WaitTimedOut
from penstock.db import Database
from penstock.errors import BatchFinished, FileInUse, NotFound, NothingToRetry, ValidationFailed
from penstock.settings import Settings
from redis import Redis

from tests.platform.api.conftest import Worker
from tests.platform.batches.conftest import as_jsonl, native
from tests.platform.batches.serving import served, workshop_of
from tests.platform.client.live import CuttingProxy
from tests.platform.client.real import api_key, app, connected, url, worker

__all__ = ["api_key", "app", "connected", "url", "worker"]  # fixtures


def test_a_file_from_upload_to_its_end(connected: Client, url: str, api_key: str, tmp_path: Path) -> None:
    source = tmp_path / "lines.jsonl"
    source.write_bytes(bytes(range(256)) * 3000)
    made = connected.files.upload(source, expires_seconds=3600)

    assert (made.filename, made.bytes, made.purpose) == ("lines.jsonl", 768_000, "batch")
    assert connected.files.get(made.id) == made
    assert list(connected.files.list(page_size=1)) == [made]
    assert connected.files.read(made.id) == source.read_bytes()
    port = int(url.rpartition(":")[2])
    with CuttingProxy(port, budget=300_000, cuts=2) as proxy, Client(proxy.url, api_key) as client:
        client.files.download(made.id, tmp_path / "copy")
        assert proxy.connections == 3
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()
    connected.files.delete(made.id)
    with pytest.raises(NotFound):
        connected.files.read(made.id)


def test_a_batch_from_submit_to_its_end(
    connected: Client, worker: Worker, settings: Settings, database: Database, redis: Redis, tmp_path: Path
) -> None:
    source = tmp_path / "lines.jsonl"
    source.write_bytes(as_jsonl([native(1), native(2, "fail"), native(3)]))
    batch = connected.batches.submit(source, priority=2, metadata={"a": "b"})
    assert (batch.status, batch.endpoint, batch.priority, batch.metadata) == ("validating", "/v1/jobs", 2, {"a": "b"})
    with pytest.raises(FileInUse):
        connected.files.delete(batch.input_file_id)
    with pytest.raises(WaitTimedOut, match="goes on"):
        connected.batches.wait(batch.id, timeout=0.1)
    assert connected.batches.change(batch.id, priority=5).priority == 5
    connected.batches.pause(batch.id)
    connected.batches.resume(batch.id)

    with served(workshop_of(settings, database, redis), worker):
        done = connected.batches.wait(batch.id, timeout=60)
        again = connected.batches.wait(connected.batches.retry(batch.id).id, timeout=60)
    assert (done.status, done.lines.done, done.lines.succeeded, done.lines.failed) == ("completed", 3, 2, 1)
    results = list(connected.batches.results(batch.id))
    assert sorted(result.line for result in results) == [1, 2, 3]
    assert [result.line for result in connected.batches.results(batch.id, after=2)] == [results[2].line]
    assert done.output_file_id is not None
    output = [json.loads(line) for line in connected.files.read(done.output_file_id).splitlines()]
    assert [result["custom_id"] for result in output] == ["id-1", "id-3"]
    assert (again.retry_of, again.lines.total, again.lines.failed) == (batch.id, 1, 1)
    assert [known.id for known in connected.batches.list(page_size=1)] == [again.id, batch.id]
    job = next(connected.jobs.list(batch=batch.id))
    assert job.batch is not None
    assert (job.batch.id, job.batch.line) == (batch.id, 3)
    with pytest.raises(BatchFinished):
        connected.batches.cancel(batch.id)
    with pytest.raises(NothingToRetry):
        connected.batches.retry(batch.id, custom_ids=["id-1"])


def test_what_is_wrong_is_raised_in_our_own_form(connected: Client, tmp_path: Path) -> None:
    with pytest.raises(ValidationFailed) as refused:
        connected.batches.create("file_1", endpoint="/v1/none")
    assert refused.value.field == "endpoint"
    with pytest.raises(NotFound) as missing:
        connected.batches.create("file_1", endpoint="/v1/jobs")
    assert missing.value.field == "input_file_id"
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ValidationFailed, match="names no url"):
        connected.batches.submit(tmp_path / "empty")
