"""`openai.batches` against the running house: its web process, its worker, and a tender beside them."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from openai import BadRequestError, OpenAI
from openai.types import Batch

from tests.patience import eventually
from tests.platform.openai_api.conftest import CHAT, House
from tests.platform.openai_api.tending import tended

ENDED = ("completed", "failed", "expired", "cancelled")


@pytest.fixture(scope="module", autouse=True)
def tender(house: House) -> Iterator[None]:
    with tended(house):
        yield


def chat(custom_id: str, **body: Any) -> dict[str, Any]:
    asked = {"model": "tiny", "messages": CHAT, "temperature": 0, "max_tokens": 4, "ignore_eos": True} | body
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": asked}


def submit(client: OpenAI, lines: list[dict[str, Any]], endpoint: Any = "/v1/chat/completions", **extra: Any) -> Batch:
    text = "".join(json.dumps(line) + "\n" for line in lines).encode()
    file = client.files.create(file=("lines.jsonl", text), purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint=endpoint, completion_window="24h", metadata={"for": "a test"}, extra_body=extra
    )


def ended(client: OpenAI, batch: Batch) -> Batch:
    eventually(lambda: client.batches.retrieve(batch.id).status in ENDED, f"the end of {batch.id}")
    return client.batches.retrieve(batch.id)


def read(client: OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    return [json.loads(line) for line in client.files.content(file_id).iter_lines()]


def completed(client: OpenAI, batch: Batch) -> int:
    counts = client.batches.retrieve(batch.id).request_counts
    assert counts is not None
    return counts.completed


def test_a_batch_answers_as_single_calls_do(house: House, client: OpenAI) -> None:
    lines = [chat("plain"), chat("scored", logprobs=True, top_logprobs=2, n=2), chat("long", max_tokens=9)]
    batch = submit(client, lines)
    assert (batch.object, batch.endpoint, batch.metadata) == ("batch", "/v1/chat/completions", {"for": "a test"})
    done = ended(client, batch)

    assert (done.status, done.error_file_id, done.errors) == ("completed", None, None)
    assert done.request_counts is not None
    assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (3, 3, 0)
    results = read(client, done.output_file_id)
    assert [result["custom_id"] for result in results] == ["plain", "scored", "long"]
    for line, result in zip(lines, results, strict=True):
        body = line["body"] | {"extra_body": {"ignore_eos": line["body"]["ignore_eos"]}}
        del body["ignore_eos"]
        alone = client.chat.completions.create(**body, seed=0).to_dict()
        told = result["response"]["body"]
        assert result["response"]["status_code"] == 200
        assert [choice["message"] for choice in told["choices"]] == [choice["message"] for choice in alone["choices"]]
        assert [bool(choice["logprobs"]) for choice in told["choices"]] == [
            bool(choice["logprobs"]) for choice in alone["choices"]
        ]
        job = house.job(result["response"]["request_id"])
        assert (job.job_class, job.batch_id, job.batch_line) == (1, batch.id, result["line"])
    assert done.usage is not None
    assert done.usage.output_tokens == 4 + 8 + 9
    assert batch.id in [known.id for known in client.batches.list(limit=5)]


def test_completions_echo_as_they_do_alone(client: OpenAI) -> None:
    asked: Any = {
        "model": "tiny",
        "prompt": "Invoice 7",
        "max_tokens": 3,
        "temperature": 0,
        "echo": True,
        "logprobs": 1,
    }
    line = {"custom_id": "c", "method": "POST", "url": "/v1/completions", "body": asked}
    done = ended(client, submit(client, [line], "/v1/completions"))

    (result,) = read(client, done.output_file_id)
    (choice,) = result["response"]["body"]["choices"]
    (alone,) = client.completions.create(**asked).choices
    assert choice["text"] == alone.text
    assert alone.logprobs is not None
    assert choice["logprobs"]["tokens"] == alone.logprobs.tokens


def test_a_bad_line_fails_the_batch_or_goes_to_the_error_file(client: OpenAI) -> None:
    lines = [chat("good"), chat("bad", temperature=-1), chat("good")]
    failed = ended(client, submit(client, lines))
    assert failed.status == "failed"
    assert failed.errors is not None
    assert [(error.line, error.param) for error in failed.errors.data or []] == [
        (2, "body.temperature"), (3, "custom_id"),
    ]  # fmt: skip

    done = ended(client, submit(client, lines, invalid_lines="skip"))
    assert done.status == "completed"
    assert [result["custom_id"] for result in read(client, done.output_file_id)] == ["good"]
    assert [result["error"]["code"] for result in read(client, done.error_file_id)] == [
        "validation_failed", "duplicate_custom_id",
    ]  # fmt: skip


def test_what_has_finished_survives_a_cancel(house: House, client: OpenAI) -> None:
    lines = [chat("short"), chat("endless", max_tokens=900), chat("endless too", max_tokens=900)]
    batch = submit(client, lines)
    eventually(lambda: completed(client, batch) >= 1, "the first line")
    client.batches.cancel(batch.id)
    done = ended(client, batch)

    assert done.status == "cancelled"
    assert [result["custom_id"] for result in read(client, done.output_file_id)][:1] == ["short"]
    assert done.request_counts is not None
    assert done.request_counts.total == 3
    told = [*read(client, done.output_file_id), *(read(client, done.error_file_id) if done.error_file_id else [])]
    assert sorted(result["line"] for result in told) == [1, 2, 3]


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"endpoint": "/v1/embeddings"}, "endpoint"),
        ({"completion_window": "soon"}, "completion_window"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "output_expires_after.seconds"),
    ],
)
def test_what_is_wrong_is_named(client: OpenAI, wrong: dict[str, Any], param: str) -> None:
    asked: Any = {"input_file_id": "file_1", "endpoint": "/v1/completions", "completion_window": "24h"} | wrong
    with pytest.raises(BadRequestError) as refused:
        client.batches.create(**asked)
    assert refused.value.param == param


def test_a_line_may_call_tools(client: OpenAI) -> None:
    tools = [{"type": "function", "function": {"name": "now"}}]
    asked = {"tools": tools, "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 100}
    done = ended(client, submit(client, [chat("calls", ignore_eos=False, **asked)]))

    (line,) = read(client, done.output_file_id)
    (choice,) = line["response"]["body"]["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (None, "tool_calls")
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("now", {})
