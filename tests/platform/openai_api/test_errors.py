"""What is wrong is said in OpenAI's form, with the field's name; what OpenAI publishes is known."""

from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params
from penstock.auth.services import Scope, create_api_key
from penstock.openai_api.chat_request import ChatMessage, ChatRequest
from penstock.openai_api.completion_request import CompletionRequest
from pydantic import BaseModel

from tests.platform.openai_api.conftest import CHAT, House

SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "nonsense"}}}
IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"n": 0}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"logprobs": False, "top_logprobs": 1}, "top_logprobs"),
        ({"logit_bias": {"100000": 1}}, "logit_bias"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"stop": [""]}, "stop.0"),
        ({"response_format": SCHEMA}, "response_format.json_schema.schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"messages": []}, "messages"),
        ({"messages": IMAGE}, "messages.0.content.0.type"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "0123456789" * 500}]}, "messages"),
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"store": True}, "store"),
        ({"service_tier": "priority"}, "service_tier"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"metadata": {str(number): "x" for number in range(17)}}, "metadata"),
        ({"extra_body": {"tempreature": 1}}, "tempreature"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_a_wrong_field_is_named(
    house: House, client: OpenAI, wrong: dict[str, Any], param: str, streamed: bool
) -> None:
    before = house.count_jobs()
    asked: Any = {"model": "tiny", "messages": CHAT, "max_tokens": 1, "stream": streamed} | wrong
    if "max_completion_tokens" in wrong:
        del asked["max_tokens"]
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**asked)

    assert refused.value.param == param
    assert refused.value.type == "invalid_request_error"
    assert refused.value.code in ("invalid_value", "context_length_exceeded")
    assert param in refused.value.message or refused.value.code == "context_length_exceeded"
    assert "params." not in refused.value.message
    assert house.count_jobs() == before


def test_errors_are_those_that_the_client_knows(house: House, client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="nobody", messages=CHAT)
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    assert "tiny" in unknown.value.message
    with pytest.raises(openai.AuthenticationError) as stranger:
        client.with_options(api_key="psk_test_wrong").chat.completions.create(model="tiny", messages=CHAT)
    assert stranger.value.code == "invalid_api_key"
    with house.world.database.transaction() as session:
        tenant_id = house.tenant_id()
        reader = create_api_key(session, tenant_id=tenant_id, name="r", scopes=(Scope.JOBS_READ,), environment="test")[
            1
        ]
    with pytest.raises(openai.PermissionDeniedError) as forbidden:
        client.with_options(api_key=reader).completions.create(model="tiny", prompt="x")
    assert forbidden.value.code == "forbidden"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [(b"{", 400, "invalid_json"), (b"[]", 400, "invalid_value"), (b'{"model": "tiny"}', 400, "invalid_value")],
)
def test_bodies_that_no_client_sends_get_the_same_form(house: House, body: bytes, status: int, code: str) -> None:
    headers = {"Authorization": f"Bearer {house.key}", "Content-Type": "application/json"}
    answer = httpx.post(f"{house.url}/v1/chat/completions", content=body, headers=headers)

    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.headers["Content-Type"] == "application/json"


def test_other_methods_and_paths_get_it_too(house: House) -> None:
    assert httpx.get(f"{house.url}/v1/chat/completions").json()["error"]["code"] == "method_not_allowed"
    assert httpx.get(f"{house.url}/v1/chat/nothing").json()["error"]["code"] == "not_found"
    assert httpx.get(f"{house.url}/v1/jobs").json()["code"] == "unauthenticated"


def test_models_are_listed_and_found(client: OpenAI) -> None:
    assert "tiny" in [model.id for model in client.models.list()]
    model = client.models.retrieve("tiny")
    assert (model.object, model.owned_by) == ("model", "penstock")
    with pytest.raises(openai.NotFoundError) as unknown:
        client.models.retrieve("nobody")
    assert unknown.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("published", "known"),
    [
        (chat_create_params.CompletionCreateParamsBase, ChatRequest),
        (completion_create_params.CompletionCreateParamsBase, CompletionRequest),
    ],
)
def test_every_published_field_is_known(published: Any, known: type[BaseModel]) -> None:
    fields = set(published.__annotations__) | {"stream"}

    assert {"model", "temperature", "logit_bias"} < fields
    assert fields <= set(known.model_fields)


def test_what_an_answer_says_may_be_sent_back(client: OpenAI) -> None:
    (choice,) = client.chat.completions.create(model="tiny", messages=CHAT, max_tokens=3).choices
    said: Any = choice.message.model_dump()
    follow_up = [*CHAT, said, {"role": "user", "content": "And?"}]

    assert ChatMessage.model_validate(said).as_job_message() == {"role": "assistant", "content": choice.message.content}
    assert client.chat.completions.create(model="tiny", messages=follow_up, max_tokens=1).choices
