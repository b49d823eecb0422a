"""Input files are judged line by line: every error by its line and field, and then all or only the good lines."""

import json
from typing import Any

import pytest

from tests.platform.batches.conftest import Bench, as_jsonl, lines, native

ASKED = {"model": "tiny", "input": {"prompt": "a"}}
NO_NUMBER = {"type": "json_schema", "schema": {"const": float("nan")}}
WRONG: list[tuple[Any, str, str | None]] = [
    (b"{not json", "invalid_json", None),
    (b"[1]", "validation_failed", None),
    (b'{"custom_id": "\xff"}', "invalid_json", None),
    (native(1, body=ASKED | {"params": {"response_format": NO_NUMBER}}), "invalid_json", None),
    (native(1) | {"custom_id": ""}, "validation_failed", "custom_id"),
    (native(1) | {"method": "GET"}, "validation_failed", "method"),
    (native(1) | {"url": "/v1/chat/completions"}, "validation_failed", "url"),
    (native(1) | {"extra": 1}, "validation_failed", "extra"),
    (native(1, "a\0b"), "validation_failed", "body.input.prompt"),
    (native(1, body={"model": "tiny", "input": {"prompt": ""}}), "validation_failed", "body.input.prompt"),
    (native(1, body={"model": "none", "input": {"prompt": "a"}}), "model_not_found", "body.model"),
    (native(1, body=ASKED | {"class": "interactive"}), "validation_failed", "body.class"),
    (native(1, body=ASKED | {"priority": 3}), "validation_failed", "body.priority"),
    (
        native(1, body=ASKED | {"webhook": {"url": "http://10.0.0.1/"}}),
        "webhook_address_refused",
        "body.webhook.url",
    ),
]  # fmt: skip


def test_wrong_lines_fail_the_batch_and_are_named(bench: Bench) -> None:
    batch_id = bench.make([native(10), *(wrong for wrong, _, _ in WRONG), native(11)])
    bench.tend()

    batch = bench.get(batch_id)
    assert batch["status"] == "failed"
    told = [(error["line"], error["code"], error["param"]) for error in batch["errors"]["data"]]
    assert told == [(line, code, param) for line, (_, code, param) in enumerate(WRONG, start=2)]
    assert bench.caller.get(f"/v1/jobs?batch={batch_id}").json["data"] == []
    assert bench.events() == ["batch.created", "batch.failed"]


def test_every_wrong_field_of_a_line_is_told(bench: Bench) -> None:
    batch_id = bench.make([{"custom_id": "a", "url": 7}])
    bench.tend()

    errors = bench.get(batch_id)["errors"]
    assert {error["param"] for error in errors["data"]} == {"method", "url", "body"}
    assert errors["total"] == 3


def test_a_custom_id_is_had_once_also_across_chunks(bench: Bench) -> None:
    documents = [*lines(600), native(3)]
    batch_id = bench.make(documents)
    bench.tend()

    (error,) = bench.get(batch_id)["errors"]["data"]
    assert (error["line"], error["code"]) == (601, "duplicate_custom_id")
    assert "line 3" in error["message"]


def test_wrong_lines_may_go_to_the_error_file(bench: Bench) -> None:
    documents = [native(1), b"{", native(2), native(2), native(3, "")]
    batch_id = bench.make(documents, invalid_lines="skip")
    done = bench.run_to_end(batch_id)

    assert done["status"] == "completed"
    assert done["lines"] | {"total": 5, "succeeded": 2, "invalid": 3} == done["lines"]
    assert [result["custom_id"] for result in bench.content(done["output_file_id"])] == ["id-1", "id-2"]
    wrong = bench.content(done["error_file_id"])
    assert [(one["line"], one["custom_id"], one["error"]["code"]) for one in wrong] == [
        (2, None, "invalid_json"),
        (4, "id-2", "duplicate_custom_id"),
        (5, "id-3", "validation_failed"),
    ]
    assert "body.input.prompt" in wrong[2]["error"]["message"]
    assert [error["line"] for error in done["errors"]["data"]] == [2, 4, 5]


def test_a_thousand_errors_are_listed_and_all_are_counted(bench: Bench) -> None:
    batch_id = bench.make([b"x"] * 1200)
    bench.tend()

    errors = bench.get(batch_id)["errors"]
    assert (len(errors["data"]), errors["total"]) == (1000, 1200)


@pytest.mark.parametrize(("content", "code"), [(b"", "empty_file"), (b"\n \r\n\n", "empty_file")])
def test_a_file_without_lines_is_none(bench: Bench, content: bytes, code: str) -> None:
    uploaded = bench.upload(content).json["id"]
    body = {"input_file_id": uploaded, "endpoint": "/v1/jobs", "completion_window": "24h"}
    batch_id = bench.caller.post("/v1/batches", body).json["id"]
    bench.tend()

    assert [error["code"] for error in bench.get(batch_id)["errors"]["data"]] == [code]


def test_too_many_lines_are_refused(bench: Bench) -> None:
    batch_id = bench.make(lines(2001))
    bench.tend()

    assert bench.get(batch_id)["errors"]["data"][-1]["code"] == "too_many_lines"


def test_a_line_that_is_too_long_is_passed_over_without_being_read(bench: Bench) -> None:
    most = bench.workshop.settings.max_body_bytes
    fits = native(1, "x" * 200)
    long = b'{"custom_id": "long", "pad": "' + b"x" * (3 * most) + b'"}'
    batch_id = bench.make([fits, long, native(2)])
    bench.tend()

    (error,) = bench.get(batch_id)["errors"]["data"]
    assert (error["line"], error["code"]) == (2, "line_too_long")


def test_line_ends_and_empty_lines_are_of_any_kind(bench: Bench) -> None:
    one, two = json.dumps(native(1)).encode(), json.dumps(native(2)).encode()
    uploaded = bench.upload(b"\r\n" + one + b"\r\n\n" + two).json["id"]  # and no end to the last
    body = {"input_file_id": uploaded, "endpoint": "/v1/jobs", "completion_window": "24h"}
    done = bench.run_to_end(bench.caller.post("/v1/batches", body).json["id"])

    output = bench.content(done["output_file_id"])
    assert [(result["line"], result["custom_id"]) for result in output] == [(2, "id-1"), (4, "id-2")]


def test_a_key_for_other_models_is_held_to_them(bench: Bench) -> None:
    from penstock.batches.models import Batch
    from sqlalchemy import update

    batch_id = bench.make(lines(2))
    with bench.workshop.database.transaction() as session:
        session.execute(update(Batch).values(allowed_models=["large"]))
    bench.tend()

    assert {error["code"] for error in bench.get(batch_id)["errors"]["data"]} == {"model_not_allowed"}


def test_chats_and_completions_are_judged_in_their_own_names(bench: Bench) -> None:
    chat = {"custom_id": "c", "method": "POST", "url": "/v1/chat/completions"}
    bodies: list[tuple[dict[str, Any], str]] = [
        ({"model": "tiny", "messages": []}, "body.messages"),
        ({"model": "tiny", "messages": [{"role": "user", "content": "a"}], "stream": True}, "body.stream"),
        ({"model": "tiny", "messages": [{"role": "user", "content": "a"}], "max_tokens": 0}, "body.max_tokens"),
    ]
    documents = [chat | {"custom_id": f"c{number}", "body": body} for number, (body, _) in enumerate(bodies)]
    batch_id = bench.make(documents, endpoint="/v1/chat/completions")
    bench.tend()
    assert [error["param"] for error in bench.get(batch_id)["errors"]["data"]] == [param for _, param in bodies]

    asked = {"model": "tiny", "prompt": ["a", "b"]}
    several = {"custom_id": "c", "method": "POST", "url": "/v1/completions", "body": asked}
    batch_id = bench.make([several], endpoint="/v1/completions")
    bench.tend()
    assert [error["param"] for error in bench.get(batch_id)["errors"]["data"]] == ["body.prompt"]


def test_names_of_fields_that_no_database_keeps_do_not_stop_it(bench: Bench) -> None:
    batch_id = bench.make([b'{"custom_id": "a\\u0000", "\\u0000b": 1}'])
    bench.tend()

    assert bench.get(batch_id)["status"] == "failed"
    assert "\0" not in json.dumps(bench.get(batch_id))


def test_the_input_stays_while_a_batch_reads_it(bench: Bench) -> None:
    batch_id = bench.make(lines(3))
    file_id = bench.get(batch_id)["input_file_id"]
    refused = bench.caller.call("DELETE", f"/v1/files/{file_id}")
    assert (refused.status_code, refused.json["error"]["code"]) == (409, "file_in_use")

    bench.run_to_end(batch_id)
    assert bench.caller.call("DELETE", f"/v1/files/{file_id}").status_code == 200


def test_a_chunk_ends_where_it_is_large(bench: Bench) -> None:
    """Lines of a megabyte: no more than a few are in memory at once, and none is lost between chunks."""
    most = bench.workshop.settings.max_body_bytes
    documents = [native(number, "x" * (most - 1000)) for number in range(1, 8)]
    uploaded = bench.upload(as_jsonl(documents)).json["id"]
    body = {"input_file_id": uploaded, "endpoint": "/v1/jobs", "completion_window": "24h"}
    batch_id = bench.caller.post("/v1/batches", body).json["id"]
    turn = bench.take()
    assert turn is not None
    bench.tender.step(turn)
    assert 0 < bench.get(batch_id)["lines"]["total"] < 7
    bench.tender.step(turn)
    assert bench.get(batch_id)["lines"]["total"] == 7
