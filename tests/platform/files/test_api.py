"""Files through the API: whole or not there, its tenant's alone, and gone when deleted."""

import hashlib
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from flask import Flask
from penstock.db import Database
from penstock.files.models import File
from penstock.files.services import ABANDONED_SECONDS
from penstock.files.storage import FileStorage
from penstock.files.writing import sweep
from penstock.settings import Settings
from sqlalchemy import func, select, update

from tests.platform.api.conftest import Caller
from tests.platform.api.conftest import app as app
from tests.platform.api.conftest import caller as caller
from tests.platform.api.conftest import make_caller as make_caller
from tests.platform.api.conftest import plain_logs as plain_logs
from tests.platform.batches.conftest import form, upload

TEXT = bytes(range(256)) * 5000


def bodies_in(settings: Settings) -> set[str]:
    folder = Path(settings.files_url or "")
    return {path.name for path in folder.rglob("file_*")} if folder.exists() else set()


def content(caller: Caller, file_id: str, **headers: str) -> tuple[int, bytes, Any]:
    with caller.get(f"/v1/files/{file_id}/content", **headers) as answer:
        return answer.status_code, answer.data, answer.headers


def test_a_file_comes_back_as_it_was(caller: Caller, settings: Settings) -> None:
    made = upload(caller, form({"purpose": "batch"}, TEXT, "../../etc/Wörter.jsonl")).json

    assert (made["bytes"], made["sha256"]) == (len(TEXT), hashlib.sha256(TEXT).hexdigest())
    assert (made["filename"], made["status"], made["content_type"]) == (
        "Wörter.jsonl",
        "processed",
        "application/jsonl",
    )
    assert made["id"] in bodies_in(settings)
    status, data, headers = content(caller, made["id"])
    assert (status, data == TEXT, headers["Content-Length"]) == (200, True, str(len(TEXT)))
    assert headers["Content-Disposition"] == "attachment; filename*=UTF-8''W%C3%B6rter.jsonl"
    assert caller.get(f"/v1/files/{made['id']}").json == made
    assert caller.get("/v1/files?purpose=batch").json["data"] == [made]
    assert caller.get("/v1/files?purpose=batch_output").json["data"] == []


def test_a_download_goes_on_where_it_broke_off(caller: Caller) -> None:
    made = upload(caller, form({"purpose": "batch"}, TEXT)).json

    status, data, headers = content(caller, made["id"], Range="bytes=1000000-")
    assert (status, data) == (206, TEXT[1_000_000:])
    assert headers["Content-Range"] == f"bytes 1000000-{len(TEXT) - 1}/{len(TEXT)}"
    assert content(caller, made["id"], Range="bytes=5-9", If_Range=headers["ETag"])[1] == TEXT[5:10]
    assert content(caller, made["id"], Range="bytes=5-9", If_Range='"other"')[:2] == (200, TEXT)
    assert content(caller, made["id"], Range=f"bytes={len(TEXT)}-")[0] == 416


def test_the_fields_of_the_form_have_any_order(caller: Caller) -> None:
    head = b"--edge\r\nContent-Disposition: form-data; name="
    file = head + b'"file"; filename="a"\r\n\r\nabc\r\n'
    body = file + head + b'"purpose"\r\n\r\nbatch\r\n--edge--\r\n'
    assert upload(caller, body).json["bytes"] == 3


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (form({"purpose": "fine-tune"}, b"a"), "purpose"),
        (form({}, b"a"), "purpose"),
        (form({"purpose": "batch", "other": "1"}, b"a"), "other"),
        (form({"purpose": "batch", "expires_after[anchor]": "created_at"}, b"a"), "expires_after"),
        (form({"purpose": "batch", "expires_after[seconds]": "5"}, b"a"), "expires_after[seconds]"),
        (form({"purpose": "x" * 2000}, b"a"), "purpose"),
        (b'--edge\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--edge--\r\n', "file"),
        (form({"purpose": "batch"}, b"a")[:-20], None),
        (b"no form at all", None),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_kept(
    caller: Caller, settings: Settings, database: Database, body: bytes, param: str | None
) -> None:
    before = bodies_in(settings)
    refused = upload(caller, body)

    assert (refused.status_code, refused.json["error"]["param"]) == (400, param), refused.text
    assert bodies_in(settings) == before
    with database.transaction() as session:
        assert session.scalars(select(File.id)).all() == []


def test_a_file_over_the_limit_is_refused_while_it_comes(app: Flask, caller: Caller, settings: Settings) -> None:
    few = settings.model_copy(update={"max_file_bytes": 100_000})
    services = app.extensions["penstock"]
    object.__setattr__(services, "settings", few)
    before = bodies_in(settings)
    for size in (100_001, 900_000):
        refused = upload(caller, form({"purpose": "batch"}, b"x" * size))
        assert (refused.status_code, refused.json["error"]["code"]) == (413, "body_too_large"), size
    assert upload(caller, form({"purpose": "batch"}, b"x" * 100_000)).status_code == 200
    assert len(bodies_in(settings) - before) == 1


def test_a_type_that_no_header_can_hold_is_none(caller: Caller) -> None:
    body = form({"purpose": "batch"}, b"a").replace(b"application/jsonl", "application/ж".encode())
    made = upload(caller, body).json
    assert content(caller, made["id"])[2]["Content-Type"] == "application/octet-stream"


def test_no_body_but_a_form_is_taken(caller: Caller) -> None:
    assert caller.post("/v1/files", {"purpose": "batch"}).status_code == 415


def test_deleting_deletes(caller: Caller, settings: Settings, database: Database) -> None:
    made = upload(caller, form({"purpose": "batch"}, b"secret")).json
    answer = caller.call("DELETE", f"/v1/files/{made['id']}")

    assert answer.json == {"id": made["id"], "object": "file", "deleted": True}
    assert made["id"] not in bodies_in(settings)
    with database.transaction() as session:
        assert session.get(File, made["id"]) is None
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        assert caller.call(method, f"/v1/files/{made['id']}{path}").status_code == 404


def test_a_strangers_file_is_not_there(caller: Caller, make_caller: Callable[..., Caller], settings: Settings) -> None:
    made, stranger = upload(caller, form({"purpose": "batch"}, b"mine")).json, make_caller()
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        assert stranger.call(method, f"/v1/files/{made['id']}{path}").status_code == 404
    body = {"input_file_id": made["id"], "endpoint": "/v1/jobs", "completion_window": "24h"}
    assert stranger.post("/v1/batches", body).status_code == 404
    assert stranger.get("/v1/files").json["data"] == []
    assert made["id"] in bodies_in(settings)


def test_pages_go_either_way(caller: Caller) -> None:
    ids = [upload(caller, form({"purpose": "batch"}, b"a")).json["id"] for _ in range(3)]
    first = caller.get("/v1/files?limit=2").json
    assert ([file["id"] for file in first["data"]], first["has_more"]) == (ids[:0:-1], True)
    rest = caller.get(f"/v1/files?limit=2&after={first['last_id']}").json
    assert ([file["id"] for file in rest["data"]], rest["has_more"]) == (ids[:1], False)
    assert [file["id"] for file in caller.get("/v1/files?order=asc").json["data"]] == ids


def test_what_a_crash_left_is_swept(caller: Caller, settings: Settings, database: Database) -> None:
    """A file in every stage of its way in or out: only the whole one stays, and one that is still coming."""
    ids = [upload(caller, form({"purpose": "batch"}, b"a")).json["id"] for _ in range(5)]
    whole, coming, abandoned, deleting, expired = ids
    long_ago = func.now() - timedelta(seconds=ABANDONED_SECONDS + 1)
    with database.transaction() as session:
        for file_id, values in (
            (coming, {"state": "uploading"}),
            (abandoned, {"state": "uploading", "touched_at": long_ago}),
            (deleting, {"state": "deleting"}),
            (expired, {"expires_at": func.now()}),
        ):
            session.execute(update(File).where(File.id == file_id).values(values))
    assert {file["id"] for file in caller.get("/v1/files").json["data"]} == {whole, expired}

    assert sweep(database, FileStorage.of(settings)) == 3
    assert bodies_in(settings) & set(ids) == {whole, coming}
    with database.transaction() as session:
        assert set(session.scalars(select(File.id))) == {whole, coming}


def test_files_may_lie_anywhere_that_fsspec_knows(app: Flask, caller: Caller) -> None:
    services = app.extensions["penstock"]
    object.__setattr__(services, "storage", FileStorage(f"memory://{uuid4().hex}"))
    fields = {"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    made = upload(caller, form(fields, TEXT)).json
    assert made["expires_at"] - made["created_at"] == 3600
    assert content(caller, made["id"], Range="bytes=10-19")[1] == TEXT[10:20]
    assert caller.call("DELETE", f"/v1/files/{made['id']}").status_code == 200


def test_who_wants_problem_documents_gets_them(caller: Caller) -> None:
    missing = caller.get("/v1/files/file_1", Accept="application/json, application/problem+json")
    assert (missing.mimetype, missing.json["code"]) == ("application/problem+json", "not_found")
