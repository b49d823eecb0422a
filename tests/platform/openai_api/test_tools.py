"""Tools in chats and responses against the running house: a model that knows nothing of them calls them rightly."""

import json
import signal
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from penstock.jobs.documents import JobDocument
from penstock.openai_api.documents import ChatCompletion
from penstock.openai_api.response_documents import InputItemPage, ResponseDocument

from tests.platform.openai_api.conftest import House

QUESTION: Any = [{"role": "user", "content": "Which city?"}]
WEATHER: dict[str, Any] = {
    "name": "weather",
    "description": "The weather of the next days",
    "parameters": {
        "type": "object",
        "properties": {"days": {"enum": [1, 2, 3]}, "city": {"enum": ["Paris", "Oslo"]}},
        "required": ["days", "city"],
        "additionalProperties": False,
    },
}
NOW: dict[str, Any] = {"name": "now"}
LONG: dict[str, Any] = {
    "name": "draw",
    "parameters": {
        "type": "object",
        "properties": {"dots": {"type": "array", "items": {"enum": [10, 21, 32]}, "minItems": 120, "maxItems": 120}},
        "required": ["dots"],
        "additionalProperties": False,
    },
}
END: dict[str, float] = {"1": -100}
"""The end of text is as unlikely as it can be made: an answer ends where nothing else may come."""


def chat_tools(*functions: dict[str, Any]) -> Any:
    return [{"type": "function", "function": function} for function in functions]


def response_tools(*functions: dict[str, Any]) -> Any:
    return [{"type": "function", **function} for function in functions]


def asked(**more: Any) -> Any:
    tools = {"tools": chat_tools(WEATHER, NOW), "tool_choice": "required"}
    return {"model": "tiny", "messages": QUESTION, "temperature": 1, "seed": 3, "max_tokens": 300} | tools | more


def asked_response(**more: Any) -> Any:
    tools = {"tools": response_tools(WEATHER, NOW), "tool_choice": "required", "parallel_tool_calls": False}
    sampled = {"temperature": 1, "max_output_tokens": 300, "extra_body": {"seed": 3}}
    return {"model": "tiny", "input": "Which city?"} | sampled | tools | more


def calls_of(message: Any) -> list[Any]:
    return message.tool_calls or []


def assert_valid(calls: Any) -> None:
    assert calls
    for call in calls:
        arguments = json.loads(call.function.arguments)
        if call.function.name == "now":
            assert arguments == {}
        else:
            assert call.function.name == "weather"
            assert list(arguments) == ["days", "city"]
            assert arguments["days"] in (1, 2, 3)
            assert arguments["city"] in ("Paris", "Oslo")


def put_together(chunks: Any) -> dict[int, dict[str, Any]]:
    """The choices that chunks make, as an answer tells them."""
    choices: dict[int, dict[str, Any]] = {}
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        told = choices.setdefault(choice.index, {"content": None, "calls": [], "finish_reason": None})
        if choice.delta.content:
            told["content"] = (told["content"] or "") + choice.delta.content
        for part in choice.delta.tool_calls or ():
            if part.id is not None:
                assert (part.index, part.type) == (len(told["calls"]), "function")
                told["calls"].append({"id": part.id, "name": part.function.name, "arguments": ""})
            told["calls"][part.index]["arguments"] += part.function.arguments
        told["finish_reason"] = choice.finish_reason
    return choices


def as_told(choice: Any) -> dict[str, Any]:
    calls = [
        {"id": call.id, "name": call.function.name, "arguments": call.function.arguments}
        for call in calls_of(choice.message)
    ]
    return {"content": choice.message.content, "calls": calls, "finish_reason": choice.finish_reason}


def test_required_calls_are_valid_and_the_same_wherever_they_are_told(house: House, client: OpenAI) -> None:
    body = asked(n=2, parallel_tool_calls=False, extra_headers={"Idempotency-Key": "tools"})
    answer = client.chat.completions.create(**body)
    chunks = list(client.chat.completions.create(stream=True, **body))

    for choice in answer.choices:
        assert (choice.message.content, choice.finish_reason) == (None, "tool_calls")
        (call,) = calls_of(choice.message)
        assert_valid([call])
        assert call.id == f"call_{answer.id.removeprefix('job_')}_{choice.index}_0"
    assert put_together(chunks) == {choice.index: as_told(choice) for choice in answer.choices}
    assert chunks[0].choices[0].delta.to_dict() == {"role": "assistant", "content": None}
    ChatCompletion.model_validate(client.chat.completions.with_raw_response.create(**body).http_response.json())

    native = house.job(answer.id).output or {}
    for choice, told in zip(answer.choices, native["choices"], strict=True):
        assert told["tool_calls"] == [call.to_dict() for call in calls_of(choice.message)]
        assert told["text"] == ""


def test_the_native_door_tells_the_same(house: House) -> None:
    params = {"tools": chat_tools(WEATHER), "tool_choice": "required", "max_tokens": 300, "seed": 5}
    document = house.native(input={"messages": QUESTION}, params=params | {"parallel_tool_calls": False})
    headers = {"Authorization": f"Bearer {house.key}", "Accept": "text/event-stream"}
    stream = httpx.get(f"{house.url}/v1/jobs/{document['id']}/events", headers=headers).text

    JobDocument.model_validate(document)
    (choice,) = document["output"]["choices"]
    (call,) = choice["tool_calls"]
    deltas = [json.loads(line.removeprefix("data: ")) for line in stream.splitlines() if '"token_id"' in line]
    pieces = [piece for delta in deltas for piece in delta.get("tool_calls", ())]
    assert {pieces[0]["id"], pieces[0]["function"]["name"]} == {call["id"], "weather"}
    assert "".join(piece["function"]["arguments"] for piece in pieces) == call["function"]["arguments"]
    assert choice["finish_reason"] == "tool_calls"


def test_calls_come_side_by_side_unless_they_may_not(client: OpenAI) -> None:
    several = client.chat.completions.create(**asked(logit_bias=END, tools=chat_tools(NOW)))
    (single,) = client.chat.completions.create(**asked(logit_bias=END, parallel_tool_calls=False)).choices

    (choice,) = several.choices
    calls = calls_of(choice.message)
    assert choice.finish_reason == "length"
    assert len(calls) > 2
    assert_valid(calls[:-1])
    assert len({call.id for call in calls}) == len(calls)
    assert_valid(single.message.tool_calls)
    assert (len(calls_of(single.message)), single.finish_reason) == (1, "tool_calls")


def test_the_function_that_is_named_is_called(client: OpenAI) -> None:
    for name in ("now", "weather"):
        choice: Any = {"type": "function", "function": {"name": name}}
        (answer,) = client.chat.completions.create(**asked(tool_choice=choice, parallel_tool_calls=False)).choices
        assert [call.function.name for call in calls_of(answer.message)] == [name]


@pytest.mark.parametrize("choice", ["none", "auto"])
def test_a_model_that_need_not_call_may_talk(house: House, client: OpenAI, choice: str) -> None:
    """This one never learned of tools: it talks, of no opening."""
    answer = client.chat.completions.create(**asked(tool_choice=choice, max_tokens=12))
    (said,) = answer.choices
    chunks = list(client.chat.completions.create(stream=True, **asked(tool_choice=choice, max_tokens=12)))

    assert said.message.content
    assert said.message.tool_calls is None
    assert put_together(chunks)[0]["content"] == said.message.content
    assert answer.usage is not None
    shown = house.tokenizer.encode_input({"messages": QUESTION}, chat_tools(WEATHER, NOW))
    assert answer.usage.prompt_tokens == len(shown)


def test_a_conversation_goes_on_with_what_came_of_a_call(house: House, client: OpenAI) -> None:
    first = client.chat.completions.create(**asked(parallel_tool_calls=False)).choices[0].message
    (call,) = calls_of(first)
    result = {"role": "tool", "tool_call_id": call.id, "content": [{"type": "text", "text": "7 degrees"}]}
    answer = client.chat.completions.create(
        **asked(messages=[*QUESTION, first.to_dict(), result], tool_choice="auto", max_tokens=4)
    )

    messages = house.job(answer.id).input["messages"]
    told = {"role": "assistant", "content": "", "tool_calls": [call.to_dict()]}
    assert messages == [*QUESTION, told, result | {"content": "7 degrees"}]
    arguments = json.loads(call.function.arguments)
    shown = house.tokenizer.render_chat(messages, chat_tools(WEATHER, NOW))
    assert f'"arguments": {json.dumps(arguments)}' in shown
    assert "7 degrees" in shown
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(
        house.tokenizer.encode_input({"messages": messages}, chat_tools(WEATHER, NOW))
    )


def test_a_call_goes_on_in_its_middle_when_the_engine_dies(house: House, client: OpenAI) -> None:
    body = asked(tools=chat_tools(LONG), temperature=0, parallel_tool_calls=False, max_tokens=700)
    (whole,) = client.chat.completions.create(**body).choices
    with client.chat.completions.create(stream=True, **body) as stream:
        first = next(stream)
        house.world.tokens_in_flight(first.id, 60)
        house.signal_engines(signal.SIGKILL)
        told = put_together([first, *stream])[0]

    (call,) = calls_of(whole.message)
    assert len(json.loads(call.function.arguments)["dots"]) == 120
    (resumed,) = told["calls"]
    assert resumed["arguments"] == call.function.arguments
    assert (told["content"], told["finish_reason"]) == (None, "tool_calls")
    assert house.job(first.id).runs == 2


def test_a_response_calls_and_goes_on_with_the_result(house: House, client: OpenAI) -> None:
    first = client.responses.create(**asked_response())
    raw = client.responses.with_raw_response.retrieve(first.id).http_response.json()
    (called,) = ResponseDocument.model_validate(raw).model_dump()["output"]

    assert (first.status, called["type"], called["status"]) == ("completed", "function_call", "completed")
    assert called["call_id"] == f"call_{first.id.removeprefix('resp_')}_0_0"
    assert json.loads(called["arguments"]) is not None
    assert [tool.to_dict()["name"] for tool in first.tools] == ["weather", "now"]
    assert (first.tool_choice, first.parallel_tool_calls) == ("required", False)

    result: Any = {"type": "function_call_output", "call_id": called["call_id"], "output": "7 degrees"}
    second = client.responses.create(
        **asked_response(previous_response_id=first.id, input=[result], tool_choice="none", max_output_tokens=4)
    )
    function = {"name": called["name"], "arguments": called["arguments"]}
    calls = [{"id": called["call_id"], "type": "function", "function": function}]
    messages = house.job(second.id.replace("resp_", "job_")).input["messages"]
    assert messages == [
        {"role": "user", "content": "Which city?"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "tool_call_id": called["call_id"], "content": "7 degrees"},
    ]
    assert second.output[0].type == "message"

    by_hand: Any = [{"role": "user", "content": "Which city?"}, {**called, "id": None}, result]
    third = client.responses.create(**asked_response(input=by_hand, tool_choice="none", max_output_tokens=4))
    assert house.job(third.id.replace("resp_", "job_")).input["messages"] == messages
    page = client.responses.input_items.with_raw_response.list(second.id, order="asc").http_response.json()
    items = InputItemPage.model_validate(page).model_dump()["data"]
    assert [item["type"] for item in items] == ["message", "function_call", "function_call_output"]
    assert (items[1]["arguments"], items[2]["output"]) == (called["arguments"], "7 degrees")
    assert len({item["id"] for item in items}) == 3


def test_a_responses_stream_tells_calls_by_events_of_their_own(client: OpenAI) -> None:
    body = asked_response(tools=response_tools(NOW), parallel_tool_calls=True, max_output_tokens=60)
    events: list[Any] = list(client.responses.create(stream=True, **(body | {"extra_body": {"logit_bias": END}})))
    last = events[-1].response

    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert len(last.output) > 1
    assert last.status == "incomplete"
    begun = ["response.output_item.added", "response.function_call_arguments.delta"]
    ended = ["response.function_call_arguments.done", "response.output_item.done"]
    kinds = [event.type for event in events]
    assert kinds[:3] == ["response.created", "response.queued", "response.in_progress"]
    for index, item in enumerate(last.output):
        mine = [event for event in events[3:-1] if event.output_index == index]
        whole = index < len(last.output) - 1
        assert item.status == ("completed" if whole else "incomplete")
        deltas = [event for event in mine if event.type == begun[1]]
        assert "".join(event.delta for event in deltas) == item.arguments
        assert [event.type for event in mine] == [begun[0], *[begun[1]] * len(deltas), *ended]
        assert {event.item_id for event in mine if "arguments" in event.type} == {item.id}
        assert (mine[0].item.arguments, mine[0].item.call_id) == ("", item.call_id)
        assert mine[-1].item == item
        assert mine[-2].arguments == item.arguments
    assert list(client.responses.retrieve(last.id, stream=True, starting_after=7)) == events[8:]


def test_a_background_call_is_followed_over_a_break_and_a_crash(house: House, client: OpenAI) -> None:
    body = asked_response(tools=response_tools(LONG), temperature=0, max_output_tokens=700)
    whole: list[Any] = list(client.responses.create(stream=True, **body))
    with client.responses.create(stream=True, background=True, **body) as stream:
        begun: list[Any] = [next(stream) for _ in range(9)]
    job_id = begun[0].response.id.replace("resp_", "job_")
    house.world.tokens_in_flight(job_id, 60)
    house.signal_engines(signal.SIGKILL)
    rest: list[Any] = list(
        client.responses.retrieve(begun[0].response.id, stream=True, starting_after=begun[-1].sequence_number)
    )

    told = [*begun, *rest]
    assert [event.type for event in told] == [event.type for event in whole]
    assert told[-1].response.output[0].arguments == whole[-1].response.output[0].arguments
    assert told[-1].response.status == "completed"
    assert house.job(job_id).runs == 2


def test_what_was_said_before_a_cut_call_cannot_be_gone_on_with(client: OpenAI) -> None:
    cut = client.responses.create(**asked_response(tools=response_tools(LONG), max_output_tokens=40))
    assert (cut.status, cut.output[0].status) == ("incomplete", "incomplete")
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(**asked_response(previous_response_id=cut.id))
    assert refused.value.param == "previous_response_id"


def test_stop_ends_what_is_said_and_no_call(client: OpenAI) -> None:
    (choice,) = client.chat.completions.create(**asked(stop=['"', "\n"], parallel_tool_calls=False)).choices
    assert_valid(choice.message.tool_calls)
    assert choice.finish_reason == "tool_calls"


BROKEN = {"name": "broken", "parameters": {"type": "object", "properties": {"a": {"type": "nonsense"}}}}
NAMELESS: Any = {"type": "function", "function": {"name": "nobody"}}
CALLED = {"id": "c", "type": "function", "function": {"name": "now", "arguments": "{"}}
CALLING = {"role": "assistant", "content": "x", "tool_calls": [CALLED]}


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"tools": chat_tools(NOW, BROKEN)}, "tools.1.function.parameters"),
        ({"tools": chat_tools({"name": "f", "parameters": {"type": "array"}})}, "tools.0.function.parameters"),
        ({"tools": chat_tools({"name": "no spaces"})}, "tools.0.function.name"),
        ({"tools": chat_tools(NOW, WEATHER, NOW)}, "tools"),
        ({"tools": chat_tools(*({"name": f"f{number}"} for number in range(129)))}, "tools"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools.0.type"),
        ({"tools": []}, "tool_choice"),
        ({"tool_choice": NAMELESS}, "tool_choice"),
        ({"tool_choice": "perhaps"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "tools"),
        ({"extra_body": {"stop_token_ids": [7]}}, "stop_token_ids"),
        ({"extra_body": {"ignore_eos": True}}, "ignore_eos"),
        ({"extra_body": {"min_tokens": 1}}, "min_tokens"),
        ({"messages": [*QUESTION, {"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages"),
        ({"messages": [*QUESTION, CALLING]}, "messages.1.tool_calls.0.function.arguments"),
        ({"messages": [{"role": "assistant", "content": None}]}, "messages.0"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_tools_is_named(house: House, client: OpenAI, wrong: dict[str, Any], param: str) -> None:
    before = house.count_jobs()
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**asked(**wrong))

    assert refused.value.param == param, refused.value.message
    assert house.count_jobs() == before


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"tools": response_tools(NOW, BROKEN)}, "tools.1.parameters"),
        ({"tools": response_tools(NOW, NOW)}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tool_choice": {"type": "function", "name": "nobody"}}, "tool_choice"),
        ({"tool_choice": "perhaps"}, "tool_choice"),
        ({"top_logprobs": 1}, None),
        ({"input": [{"type": "function_call_output", "call_id": "1", "output": "x"}]}, "input"),
        ({"input": [{"type": "function_call", "call_id": "1", "name": "now", "arguments": "x"}]}, "input.0.arguments"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input.0.type"),
    ],
)
def test_what_is_wrong_with_a_responses_tools_is_named(
    house: House, client: OpenAI, wrong: dict[str, Any], param: str | None
) -> None:
    before = house.count_jobs()
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(**asked_response(**wrong))

    assert refused.value.param == param, refused.value.message
    assert house.count_jobs() == before


def test_a_finished_prompt_shows_no_tools(house: House) -> None:
    body = {"model": "tiny", "input": {"prompt": "x"}, "params": {"tools": chat_tools(NOW)}}
    refused = httpx.post(f"{house.url}/v1/jobs", json=body, headers={"Authorization": f"Bearer {house.key}"})
    assert (refused.status_code, refused.json()["field"]) == (422, "params.tools")
