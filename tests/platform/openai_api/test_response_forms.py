"""Responses as documents and events: which fields are known, and what a stream tells after tokens were lost."""

from collections.abc import Sequence
from typing import Any

import pytest
from openai.types.responses import response_create_params
from openai.types.responses.response_includable import ResponseIncludable
from penstock.errors import JobStopped, ValidationFailed
from penstock.jobs.stream import Cursor, StreamItem
from penstock.openai_api.response_forms import REWIND_STEP, ResponseEvents, ResponseForm
from penstock.openai_api.response_request import Includable, ResponseRequest

OPEN_RESPONSES = {
    "model", "input", "previous_response_id", "include", "tools", "tool_choice", "metadata", "text", "temperature",
    "top_p", "presence_penalty", "frequency_penalty", "parallel_tool_calls", "stream", "stream_options", "background",
    "max_output_tokens", "max_tool_calls", "reasoning", "safety_identifier", "prompt_cache_key", "truncation",
    "instructions", "store", "service_tier", "top_logprobs",
}  # fmt: skip


def test_every_published_field_is_known() -> None:
    fields = set(response_create_params.ResponseCreateParamsBase.__annotations__) | {"stream"} | OPEN_RESPONSES

    assert fields <= set(ResponseRequest.model_fields)
    assert set(ResponseIncludable.__args__) <= set(Includable.__args__)  # type: ignore[attr-defined]  # a Literal


JOB: Any = {
    "id": "job_1", "status": "running", "model": "tiny", "output": None, "error": None, "finished_at": None,
    "created_at": "2026-11-21T10:00:00.000Z", "usage": {"prompt_tokens": 1, "cached_tokens": 0, "output_tokens": 2},
}  # fmt: skip


def rewound_stream() -> list[StreamItem]:
    def delta(position: int, text: str) -> StreamItem:
        return StreamItem(Cursor(2, position + 1), "output.delta", {"position": position, "text": text})

    over = JOB | {
        "status": "succeeded",
        "finished_at": "2026-11-21T10:00:01.000Z",
        "output": {"choices": [{"text": "ac", "finish_reason": "stop"}]},
    }
    return [
        StreamItem(Cursor(2, 0), "job.running", {}),
        delta(0, "a"),
        StreamItem(Cursor(3, 1), "output.rewound", {"data": {"position": 1}}),
        delta(1, "c"),
        StreamItem(Cursor(4, 2), "job.succeeded", {"job": over}),
    ]


def tell(after: int, items: Sequence[StreamItem]) -> list[dict[str, Any]]:
    events = ResponseEvents(ResponseForm({}, None), JOB, after)
    return [*events.first(), *(event for item in items for event in events.take(item))]


def test_tokens_that_were_lost_are_never_told_over() -> None:
    items = rewound_stream()
    told = tell(-1, items)
    numbers = [event["sequence_number"] for event in told]
    assert numbers == [*range(6), *range(REWIND_STEP, REWIND_STEP + 5)]
    for after in (numbers[4], numbers[5], numbers[6]):
        assert tell(after, items) == [event for event in told if event["sequence_number"] > after]
    with pytest.raises(JobStopped):
        tell(6, items)  # an event that was told before the tokens were lost
    lost = StreamItem(Cursor(2, 2), "output.delta", {"position": 1, "text": "b"})
    with pytest.raises(JobStopped):
        tell(-1, [*items[:2], lost, *items[2:]])
    with pytest.raises(ValidationFailed):
        tell(numbers[-1] + 1, items)


def test_an_end_without_a_token_has_no_message() -> None:
    over = JOB | {
        "status": "failed",
        "error": {"code": "model_crashed", "message": "no"},
        "finished_at": JOB["created_at"],
    }
    *_, last = tell(-1, [StreamItem(Cursor(2, 0), "job.failed", {"job": over})])

    assert last["type"] == "response.failed"
    assert (last["response"]["output"], last["response"]["error"]["code"]) == ([], "model_crashed")
