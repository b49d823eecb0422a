"""`openai.responses` against the running house."""

import json
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import httpx
import openai
import pytest
from openai import OpenAI
from penstock.openai_api.response_documents import DeletedResponse, InputItemPage, ResponseDocument
from pydantic import BaseModel

from tests.platform.openai_api.conftest import GREEDY, House
from tests.platform.openai_api.test_response_forms import OPEN_RESPONSES

LENGTH = 12
ASKED: dict[str, Any] = GREEDY | {"input": "Invoice 12", "max_output_tokens": LENGTH}


class Receipt(BaseModel):
    """What a model is held to."""

    kind: Literal["invoice", "receipt"]
    paid: bool


def types_of(events: Sequence[Any]) -> list[str]:
    return [event.type for event in events]


def text_of(events: Sequence[Any]) -> str:
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")


@contextmanager
def engine_held(house: House) -> Iterator[None]:
    """No token is made meanwhile."""
    house.signal_engines(signal.SIGSTOP)
    try:
        yield
    finally:
        house.signal_engines(signal.SIGCONT)


def job_of(response_id: str) -> str:
    return response_id.replace("resp_", "job_")


def test_a_response_is_a_job_and_says_what_the_job_says(house: House, client: OpenAI) -> None:
    answer = client.responses.create(instructions="Be brief", **ASKED)
    messages = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Invoice 12"}]
    params = {"temperature": 0.0, "ignore_eos": True, "max_tokens": LENGTH}
    native = house.native(input={"messages": messages}, params=params)

    assert answer.output_text == native["output"]["choices"][0]["text"]
    assert (answer.status, answer.model, answer.instructions) == ("incomplete", "tiny", "Be brief")
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    job = house.job(job_of(answer.id))
    assert (job.state, job.input) == ("succeeded", native["input"])
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (job.prompt_tokens, LENGTH)
    raw = client.responses.with_raw_response.retrieve(answer.id).http_response.json()
    told = ResponseDocument.model_validate(raw)
    assert OPEN_RESPONSES - {"input", "include", "stream", "stream_options"} <= set(raw)
    assert told.model_dump() == ResponseDocument.model_validate(answer.to_dict()).model_dump()


def test_a_whole_answer_is_completed(client: OpenAI) -> None:
    choice: Any = {"type": "json_schema", "name": "one", "schema": {"const": 7}}
    answer = client.responses.create(model="tiny", input="x", text={"format": choice})

    assert (answer.status, answer.output_text, answer.incomplete_details) == ("completed", "7", None)
    assert answer.output[0].type == "message"
    assert answer.output[0].status == "completed"


def test_a_stream_tells_typed_events_in_their_order(client: OpenAI) -> None:
    whole = client.responses.create(**ASKED)
    events: list[Any] = list(client.responses.create(stream=True, **ASKED))

    deltas = [kind for kind in types_of(events) if kind == "response.output_text.delta"]
    assert types_of(events) == [
        "response.created", "response.queued", "response.in_progress", "response.output_item.added",
        "response.content_part.added", *deltas, "response.output_text.done", "response.content_part.done",
        "response.output_item.done", "response.incomplete",
    ]  # fmt: skip
    assert 1 < len(deltas) <= LENGTH
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert text_of(events) == whole.output_text
    assert events[-4].text == events[-3].part.text == whole.output_text
    assert events[-2].item.id == events[3].item.id == events[5].item_id
    assert [event.response.status for event in (*events[:3], events[-1])] == [
        "queued", "queued", "in_progress", "incomplete",
    ]  # fmt: skip
    assert events[-1].response == client.responses.retrieve(events[0].response.id)


def test_the_wire_is_that_of_open_responses(house: House) -> None:
    body = {"model": "tiny", "input": "x", "max_output_tokens": 2, "stream": True, "ignore_eos": True}
    text = httpx.post(f"{house.url}/v1/responses", json=body, headers={"Authorization": f"Bearer {house.key}"}).text

    *blocks, last, end = text.split("\n\n")
    assert (last, end) == ("data: [DONE]", "")
    for block in blocks:
        lines = [line for line in block.split("\n") if not line.startswith(":")]
        if lines:
            name, data = lines
            assert name == f"event: {json.loads(data.removeprefix('data: '))['type']}"


def test_a_stream_goes_on_from_any_event_long_after_its_end(client: OpenAI) -> None:
    events: list[Any] = list(client.responses.create(stream=True, **ASKED))
    response_id = events[0].response.id

    for after in (0, 2, 4, 6, len(events) - 2):
        told: list[Any] = list(client.responses.retrieve(response_id, stream=True, starting_after=after))
        assert told == events[after + 1 :]
    assert list(client.responses.retrieve(response_id, stream=True)) == events
    assert list(client.responses.retrieve(response_id, stream=True, starting_after=len(events) - 1)) == []
    (error,) = client.responses.retrieve(response_id, stream=True, starting_after=len(events))
    assert error.type == "error"
    assert (error.code, error.param) == ("invalid_value", "starting_after")


def test_a_background_stream_outlives_its_client_and_the_engine(house: House, client: OpenAI) -> None:
    asked: Any = ASKED | {"max_output_tokens": 300}
    whole: list[Any] = list(client.responses.create(stream=True, **asked))
    with client.responses.create(stream=True, background=True, **asked) as stream:
        begun: list[Any] = [next(stream) for _ in range(9)]
    response_id = begun[0].response.id
    house.world.tokens_in_flight(job_of(response_id), 20)
    house.signal_engines(signal.SIGKILL)
    rest: list[Any] = list(
        client.responses.retrieve(response_id, stream=True, starting_after=begun[-1].sequence_number)
    )

    told = [*begun, *rest]
    assert types_of(told) == types_of(whole)
    assert [event.sequence_number for event in told] == list(range(len(whole)))
    assert text_of(told) == text_of(whole)
    assert house.job(job_of(response_id)).runs == 2


def test_a_background_response_is_fetched_when_it_is_over(house: House, client: OpenAI) -> None:
    with engine_held(house):
        answer = client.responses.create(background=True, **ASKED)
        assert (answer.status, answer.output, answer.usage, answer.background) == ("queued", [], None, True)
        assert client.responses.retrieve(answer.id).status in ("queued", "in_progress")
    house.ended(job_of(answer.id))

    done = client.responses.retrieve(answer.id)
    assert (done.status, len(done.output), done.background) == ("incomplete", 1, True)


def test_what_there_is_of_a_running_response_is_told(house: House, client: OpenAI) -> None:
    answer = client.responses.create(background=True, **(ASKED | {"max_output_tokens": 900}))
    house.world.tokens_in_flight(job_of(answer.id), 5)
    running = client.responses.retrieve(answer.id)
    cancelled = client.responses.cancel(answer.id)

    assert cancelled.status == "cancelled"
    assert cancelled.output_text.startswith(running.output_text)
    if running.status == "in_progress":
        assert running.output[0].status == "in_progress"  # type: ignore[union-attr]  # it is a message
    assert running.output_text
    events: list[Any] = list(client.responses.retrieve(answer.id, stream=True))
    assert (types_of(events)[-1], events[-1].response.status) == ("response.incomplete", "cancelled")
    assert text_of(events) == cancelled.output_text


def test_a_cancel_changes_nothing_twice(client: OpenAI) -> None:
    answer = client.responses.create(**ASKED)
    background = client.responses.create(background=True, **(ASKED | {"max_output_tokens": 900}))

    assert client.responses.cancel(answer.id) == answer
    first = client.responses.cancel(background.id)
    assert first.status == "cancelled"
    assert client.responses.cancel(background.id) == first


def test_a_call_that_its_client_leaves_is_cancelled(house: House, client: OpenAI) -> None:
    with client.responses.create(stream=True, **(ASKED | {"max_output_tokens": 900})) as stream:
        response_id = next(stream).response.id

    assert house.ended(job_of(response_id)).state == "cancelled"
    events: list[Any] = list(client.responses.retrieve(response_id, stream=True))
    assert events[-1].response.status == "cancelled"


def test_a_conversation_goes_on(house: House, client: OpenAI) -> None:
    first = client.responses.create(instructions="Be brief", **ASKED)
    items: Any = [
        {"role": "developer", "content": [{"type": "input_text", "text": "Now"}]},
        {"role": "user", "content": "And?"},
    ]
    second = client.responses.create(
        previous_response_id=first.id, instructions="Be long", **(ASKED | {"input": items})
    )
    client.responses.delete(first.id)
    third = client.responses.create(previous_response_id=second.id, **(ASKED | {"input": "So?"}))

    turns = [("user", "Invoice 12"), ("assistant", first.output_text), ("system", "Now"), ("user", "And?")]
    later = [("assistant", second.output_text), ("user", "So?")]
    said = [(message["role"], message["content"]) for message in house.job(job_of(third.id)).input["messages"]]
    assert said == [*turns, *later]
    assert (second.previous_response_id, third.previous_response_id) == (first.id, second.id)
    assert house.job(job_of(second.id)).input["messages"][0] == {"role": "system", "content": "Be long"}
    listed: list[Any] = list(client.responses.input_items.list(second.id, order="asc", limit=3))
    assert [(item.role, item.content[0].text) for item in listed] == turns
    assert [item.content[0].type for item in listed] == ["input_text", "output_text", "input_text", "input_text"]
    newest = client.responses.input_items.list(second.id, limit=1)
    assert [item.id for item in newest.data] == [listed[-1].id]
    assert newest.has_more
    with pytest.raises(openai.BadRequestError) as unknown:
        client.responses.input_items.list(second.id, after="msg_nothing")
    assert unknown.value.param == "after"


def test_a_conversation_that_is_not_there_is_named(house: House, client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.responses.create(previous_response_id="resp_nothing", **ASKED)
    assert missing.value.param == "previous_response_id"
    with engine_held(house):
        running = client.responses.create(background=True, **ASKED)
        with pytest.raises(openai.BadRequestError) as unfinished:
            client.responses.create(previous_response_id=running.id, **ASKED)
    assert unfinished.value.param == "previous_response_id"
    house.ended(job_of(running.id))


def test_what_is_not_stored_or_was_deleted_is_not_found(house: House, client: OpenAI) -> None:
    unstored = client.responses.create(store=False, **ASKED)
    assert (unstored.store, house.job(job_of(unstored.id)).state) == (False, "succeeded")
    answer = client.responses.create(**ASKED)
    client.responses.delete(answer.id)
    running = client.responses.create(background=True, **(ASKED | {"max_output_tokens": 900}))
    client.responses.delete(running.id)

    assert house.ended(job_of(running.id)).state == "cancelled"
    for response_id in (unstored.id, answer.id, running.id):
        for ask in (client.responses.retrieve, client.responses.cancel, client.responses.delete):
            with pytest.raises(openai.NotFoundError):
                ask(response_id)
        with pytest.raises(openai.NotFoundError):
            client.responses.input_items.list(response_id)


def test_structure_is_kept_to(client: OpenAI) -> None:
    parsed = client.responses.parse(model="tiny", input="x", text_format=Receipt, max_output_tokens=200)
    assert isinstance(parsed.output_parsed, Receipt)
    asked = parsed.text.format if parsed.text else None
    assert asked.name == "Receipt"  # type: ignore[union-attr]
    free = client.responses.create(text={"format": {"type": "text"}, "verbosity": "medium"}, **ASKED)
    assert free.text.format.type == "text"


def test_log_probabilities_name_tokens(client: OpenAI) -> None:
    answer = client.responses.create(include=["message.output_text.logprobs"], top_logprobs=2, **ASKED)
    (part,) = answer.output[0].content
    tokens = part.logprobs
    assert tokens is not None
    assert "".join(token.token for token in tokens) == answer.output_text
    assert (len(tokens), {len(token.top_logprobs) for token in tokens}) == (LENGTH, {2})
    told: list[Any] = list(client.responses.retrieve(answer.id, stream=True, include=["message.output_text.logprobs"]))
    streamed = [token for event in told if event.type == "response.output_text.delta" for token in event.logprobs]
    assert [token.logprob for token in streamed] == [token.logprob for token in tokens]


def test_every_parameter_reaches_the_job_and_is_told(house: House, client: OpenAI) -> None:
    answer = client.responses.create(
        model="tiny", input="Hi", temperature=0.5, top_p=0.9, max_output_tokens=4, user="u-1",
        metadata={"order": "4711"}, service_tier="flex", parallel_tool_calls=False, tool_choice="none", tools=[],
        truncation="disabled", reasoning={"effort": "none"}, safety_identifier="s", prompt_cache_key="k",
        max_tool_calls=3,
        extra_body={"presence_penalty": 0.1, "frequency_penalty": 0.2, "seed": 5, "stop": ["~"], "top_k": 5},
    )  # fmt: skip

    job = house.job(job_of(answer.id))
    given = {"temperature": 0.5, "top_p": 0.9, "max_tokens": 4, "presence_penalty": 0.1, "frequency_penalty": 0.2}
    assert {name: job.params[name] for name in [*given, "stop", "top_k"]} == given | {"stop": ["~"], "top_k": 5}
    assert (job.seed, job.job_class, job.user_metadata) == (5, 1, {"user": "u-1", "order": "4711"})
    told = answer.to_dict()
    expected = {
        "temperature": 0.5, "top_p": 0.9, "max_output_tokens": 4, "presence_penalty": 0.1, "frequency_penalty": 0.2,
        "metadata": {"order": "4711"}, "service_tier": "flex", "parallel_tool_calls": False, "tool_choice": "none",
        "tools": [], "reasoning": {"effort": "none"}, "safety_identifier": "s", "prompt_cache_key": "k",
        "max_tool_calls": 3, "user": "u-1", "store": True, "background": False,
    }  # fmt: skip
    assert {name: told[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"input": "0123456789" * 500}, "input"),
        ({"input": []}, None),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input.0.content.0.type",
        ),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input.0.type"),
        ({"text": {"format": {"type": "json_schema", "name": "s", "schema": {"type": "x"}}}}, "text.format.schema"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format"),
        ({"text": {"verbosity": "high"}}, "text.verbosity"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"truncation": "auto"}, "truncation"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"service_tier": "priority"}, "service_tier"),
        ({"include": ["nothing"]}, "include.0"),
        ({"background": True, "store": False}, None),
        ({"extra_body": {"n": 2}}, "n"),
        ({"extra_body": {"tempreature": 1}}, "tempreature"),
    ],
)
def test_a_wrong_field_is_named(house: House, client: OpenAI, wrong: dict[str, Any], param: str | None) -> None:
    before = house.count_jobs()
    asked: Any = {"model": "tiny", "input": "x", "max_output_tokens": 1} | wrong
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(**asked)

    assert refused.value.param == param
    assert refused.value.type == "invalid_request_error"
    assert house.count_jobs() == before


def test_a_wrong_query_is_named(house: House, client: OpenAI) -> None:
    answer = client.responses.create(**ASKED)
    headers = {"Authorization": f"Bearer {house.key}"}
    for query, param in [
        ("starting_after=1", None),
        ("stream=true&starting_after=-1", "starting_after"),
        ("stream=true&stream=true", "stream"),
        ("include[]=nothing", "include[]"),
        ("include_obfuscation=true", "include_obfuscation"),
    ]:
        refused = httpx.get(f"{house.url}/v1/responses/{answer.id}?{query}", headers=headers)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param), query


def test_with_a_key_the_response_is_made_once(client: OpenAI) -> None:
    asked: Any = ASKED | {"extra_headers": {"Idempotency-Key": "response"}}
    with client.responses.create(stream=True, **asked) as stream:
        first = next(stream).response.id
    again = client.responses.create(**asked)

    assert (again.id, again.status) == (first, "incomplete")


def test_answers_are_documented_exactly(house: House, client: OpenAI) -> None:
    answer = client.responses.create(**ASKED)
    page = client.responses.input_items.with_raw_response.list(answer.id).http_response.json()
    InputItemPage.model_validate(page)
    gone = httpx.delete(f"{house.url}/v1/responses/{answer.id}", headers={"Authorization": f"Bearer {house.key}"})
    DeletedResponse.model_validate(gone.json())
