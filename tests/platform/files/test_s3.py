"""Files in a bucket, over the real protocol: a server of moto's in this process, and s3fs's own client before it."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from moto.server import ThreadedMotoServer
from penstock.app import create_app
from penstock.db import Database
from penstock.settings import Settings
from redis import Redis
from s3fs import S3FileSystem

from tests.factories import WordCounter
from tests.platform.api.conftest import Caller, Worker, caller, deployment, make_caller, worker
from tests.platform.batches.conftest import as_jsonl, form, native, upload
from tests.platform.batches.serving import served, workshop_of

__all__ = ["caller", "deployment", "make_caller", "worker"]  # fixtures

# botocore's models are read with what the newest Python wants otherwise.
pytestmark = pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")
TEXT = bytes(range(256)) * 36_000  # more than one part of an upload


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadedMotoServer]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def in_s3(settings: Settings, server: ThreadedMotoServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """Settings with a fresh bucket, and what S3's clients read in the environment to find it."""
    host, port = server.get_host_and_port()
    reach(monkeypatch, f"http://{host}:{port}")
    S3FileSystem().mkdir("penstock")
    yield settings.model_copy(update={"files_url": "s3://penstock/files"})
    S3FileSystem().rm("penstock", recursive=True)


def reach(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    names = {"ENDPOINT_URL": url, "ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "x", "DEFAULT_REGION": "us-east-1"}
    for name, value in (names | {"MAX_ATTEMPTS": "1"}).items():
        monkeypatch.setenv(f"AWS_{name}", value)
    S3FileSystem.clear_instance_cache()


@pytest.fixture
def app(in_s3: Settings, database: Database, redis: Redis) -> Iterator[Flask]:
    app = create_app(in_s3, prompts=WordCounter(), database=database, redis=redis)
    yield app
    app.extensions["penstock"].stop_streams()
    app.extensions["penstock"].live.join()


def kept() -> list[str]:
    """The names of the bucket's objects, as a client of our own sees them."""
    S3FileSystem.clear_instance_cache()
    return [name.rpartition("/")[2] for name in S3FileSystem().find("penstock")]


def content(caller: Caller, file_id: str, **headers: str) -> tuple[int, bytes]:
    with caller.get(f"/v1/files/{file_id}/content", **headers) as answer:
        return answer.status_code, answer.data


def test_a_file_is_an_object_until_it_is_deleted(caller: Caller) -> None:
    made = upload(caller, form({"purpose": "batch"}, TEXT)).json

    assert (made["bytes"], kept()) == (len(TEXT), [made["id"]])
    assert content(caller, made["id"]) == (200, TEXT)
    assert content(caller, made["id"], Range="bytes=9000000-9000009") == (206, TEXT[9_000_000:9_000_010])
    assert caller.call("DELETE", f"/v1/files/{made['id']}").status_code == 200
    assert kept() == []


def test_a_batch_reads_and_writes_there(
    caller: Caller, worker: Worker, in_s3: Settings, database: Database, redis: Redis
) -> None:
    lines = as_jsonl([native(1), native(2, "fail"), native(3)])
    file_id = upload(caller, form({"purpose": "batch"}, lines)).json["id"]
    body = {"input_file_id": file_id, "endpoint": "/v1/jobs", "completion_window": "24h"}
    batch_id = caller.post("/v1/batches", body).json["id"]

    with served(workshop_of(in_s3, database, redis), worker):
        done = ended(caller, batch_id)

    status, output = content(caller, done["output_file_id"])
    assert (status, [json.loads(line)["custom_id"] for line in output.splitlines()]) == (200, ["id-1", "id-3"])
    assert len(content(caller, done["error_file_id"])[1].splitlines()) == 1
    assert sorted(kept()) == sorted([file_id, done["output_file_id"], done["error_file_id"]])


def ended(caller: Caller, batch_id: str) -> Any:
    """The batch once it is complete; the test's own timeout bounds the wait."""
    while (batch := caller.get(f"/v1/batches/{batch_id}").json)["status"] != "completed":
        assert batch["status"] in ("validating", "in_progress", "finalizing"), batch
    return batch


def test_a_storage_that_is_away_is_said_to_be(
    caller: Caller, server: ThreadedMotoServer, monkeypatch: pytest.MonkeyPatch, settings: Settings,
    database: Database, redis: Redis,
) -> None:  # fmt: skip
    made = upload(caller, form({"purpose": "batch"}, b"text")).json
    reach(monkeypatch, "http://127.0.0.1:9")
    away = create_app(
        settings.model_copy(update={"files_url": "s3://penstock/files"}),
        prompts=WordCounter(), database=database, redis=redis,
    )  # fmt: skip
    stranded = Caller(away.test_client(), caller.tenant_id, caller.key)

    refused = upload(stranded, form({"purpose": "batch"}, b"text"))
    status, told = content(stranded, made["id"])

    for code, document in ((refused.status_code, refused.json), (status, json.loads(told))):
        said = document["error"]
        assert (code, said["code"]) == (503, "service_unavailable"), document
        assert "file storage does not answer" in said["message"]
    assert [file["id"] for file in caller.get("/v1/files").json["data"]] == [made["id"]]
    host, port = server.get_host_and_port()
    reach(monkeypatch, f"http://{host}:{port}")
    away.extensions["penstock"].stop_streams()
    away.extensions["penstock"].live.join()
