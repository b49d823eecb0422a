"""`openai.chat.completions` against the running house."""

import json
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import pytest
from openai import APIError, APIStatusError, OpenAI, Stream
from openai.types.chat import ChatCompletionChunk
from penstock.jobs import services as jobs
from pydantic import BaseModel

from tests.patience import eventually
from tests.platform.openai_api.conftest import CHAT, GREEDY, House

SAMPLED: dict[str, Any] = GREEDY | {"temperature": 1, "seed": 7, "max_tokens": 12}


class Receipt(BaseModel):
    """What a model is held to."""

    kind: Literal["invoice", "receipt"]
    paid: bool


def texts_of(chunks: Stream[ChatCompletionChunk]) -> dict[int, str]:
    texts: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
    return texts


def test_a_chat_is_a_job_and_says_what_the_job_says(house: House, client: OpenAI) -> None:
    answer = client.chat.completions.create(messages=CHAT, max_tokens=12, **GREEDY)
    native = house.native(input={"messages": CHAT}, params={"temperature": 0.0, "ignore_eos": True, "max_tokens": 12})

    (choice,) = answer.choices
    assert choice.message.content == native["output"]["choices"][0]["text"]
    assert (choice.message.role, choice.finish_reason) == ("assistant", "length")
    assert (answer.model, answer.system_fingerprint, answer.service_tier) == ("tiny", "tiny:1", "default")
    job = house.job(answer.id)
    assert (job.state, job.input) == ("succeeded", native["input"])
    assert answer.created == int(job.created_at.timestamp())
    assert answer._request_id == answer.id
    assert answer.usage is not None
    prompt = len(house.tokenizer.encode_input({"messages": CHAT}))
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (prompt, 12)
    assert answer.usage.total_tokens == prompt + 12
    again = client.chat.completions.create(messages=CHAT, max_tokens=1, **GREEDY)
    assert again.usage is not None
    assert again.usage.prompt_tokens_details is not None
    assert again.usage.prompt_tokens_details.cached_tokens == again.usage.prompt_tokens - 1


def test_a_stream_tells_the_same_choice_by_choice(client: OpenAI) -> None:
    whole = client.chat.completions.create(messages=CHAT, n=3, **SAMPLED)
    options: Any = {"include_usage": True}
    chunks = list(client.chat.completions.create(messages=CHAT, n=3, stream=True, stream_options=options, **SAMPLED))

    texts = {choice.index: choice.message.content for choice in whole.choices}
    assert len(set(texts.values())) > 1
    assert texts_of(iter(chunks)) == texts  # type: ignore[arg-type]  # chunks are chunks
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    told = [choice for chunk in chunks for choice in chunk.choices]
    for index in range(3):
        mine = [choice for choice in told if choice.index == index]
        assert [choice.delta.role for choice in mine] == ["assistant"] + [None] * (len(mine) - 1)
        assert [choice.finish_reason for choice in mine] == [None] * (len(mine) - 1) + ["length"]


def test_log_probabilities_name_tokens(client: OpenAI) -> None:
    asked: Any = GREEDY | {"messages": CHAT, "max_tokens": 6, "logprobs": True, "top_logprobs": 2}
    (choice,) = client.chat.completions.create(**asked).choices

    assert choice.logprobs is not None
    tokens = choice.logprobs.content or []
    assert len(tokens) == 6
    assert "".join(token.token for token in tokens) == choice.message.content
    for token in tokens:
        assert bytes(token.bytes or []).decode() == token.token
        assert (token.top_logprobs[0].token, token.top_logprobs[0].logprob) == (token.token, token.logprob)
        assert token.logprob >= token.top_logprobs[1].logprob
    streamed = [chunk.choices[0].logprobs for chunk in client.chat.completions.create(stream=True, **asked)]
    assert [token for part in streamed if part for token in part.content or []] == tokens


def test_structure_is_kept_to(client: OpenAI) -> None:
    asked: Any = {"model": "tiny", "messages": CHAT, "seed": 3, "temperature": 1}
    parsed = client.chat.completions.parse(response_format=Receipt, max_tokens=200, **asked)
    assert isinstance(parsed.choices[0].message.parsed, Receipt)
    (choice,) = client.chat.completions.create(response_format={"type": "json_object"}, max_tokens=400, **asked).choices
    text = choice.message.content or ""
    assert text.startswith("{")
    if choice.finish_reason == "stop":
        json.loads(text)
    free: Any = {"type": "text"}
    assert client.chat.completions.create(response_format=free, max_tokens=1, **asked).choices


def test_every_parameter_reaches_the_job(house: House, client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny",
        messages=[
            {"role": "developer", "content": "Be brief"},
            {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        ],
        n=2, seed=5, stop=["~"], max_completion_tokens=4, temperature=0.5, top_p=0.9, presence_penalty=0.1,
        frequency_penalty=0.2, logit_bias={"40": -3}, logprobs=True, top_logprobs=1, user="u-1",
        metadata={"order": "4711"}, service_tier="flex", store=False, parallel_tool_calls=True, tool_choice="none",
        extra_body={"top_k": 5, "min_p": 0.01, "min_tokens": 1, "repetition_penalty": 1.1, "stop_token_ids": [7]},
    )  # fmt: skip

    job = house.job(answer.id)
    given = {
        "n": 2, "stop": ["~"], "max_tokens": 4, "temperature": 0.5, "top_p": 0.9, "presence_penalty": 0.1,
        "frequency_penalty": 0.2, "logit_bias": {"40": -3.0}, "logprobs": True, "top_logprobs": 1, "top_k": 5,
        "min_p": 0.01, "min_tokens": 1, "repetition_penalty": 1.1, "stop_token_ids": [7],
    }  # fmt: skip
    assert {name: job.params[name] for name in given} == given
    assert (job.seed, job.job_class, job.user_metadata) == (5, 1, {"user": "u-1", "order": "4711"})
    assert job.input == {"messages": [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hi"}]}
    assert answer.service_tier == "flex"


def test_stop_ends_the_text(client: OpenAI) -> None:
    (whole,) = client.chat.completions.create(messages=CHAT, max_tokens=30, **GREEDY).choices
    stop = (whole.message.content or "")[10:14]
    (cut,) = client.chat.completions.create(messages=CHAT, max_tokens=30, stop=stop, **GREEDY).choices

    assert cut.message.content == (whole.message.content or "").split(stop)[0]
    assert cut.finish_reason == "stop"


def test_a_stream_goes_on_when_the_engine_dies(house: House, client: OpenAI) -> None:
    asked: Any = GREEDY | {"messages": CHAT, "max_tokens": 600}
    (whole,) = client.chat.completions.create(**asked).choices
    with client.chat.completions.create(stream=True, **asked) as stream:
        first = next(stream)
        house.world.tokens_in_flight(first.id, 20)
        house.signal_engines(signal.SIGKILL)
        text = (first.choices[0].delta.content or "") + texts_of(stream)[0]

    assert text == whole.message.content
    assert house.job(first.id).runs == 2


def test_a_stream_that_its_client_leaves_is_cancelled(house: House, client: OpenAI) -> None:
    with client.chat.completions.create(messages=CHAT, max_tokens=900, stream=True, **GREEDY) as stream:
        job_id = next(stream).id

    job = house.ended(job_id)
    assert job.state == "cancelled"
    assert 0 < job.output_tokens < 900


def test_an_answer_that_its_client_does_not_wait_for_is_cancelled(house: House, client: OpenAI) -> None:
    before = house.count_jobs()
    house.signal_engines(signal.SIGSTOP)
    try:
        with pytest.raises(APIError):
            client.with_options(timeout=0.5, max_retries=0).chat.completions.create(
                messages=CHAT, max_tokens=900, **GREEDY
            )
        job_id = house.newest_job().id
        assert house.count_jobs() == before + 1
        eventually(lambda: house.job(job_id).cancel_requested_at is not None, "its cancellation")
    finally:
        house.signal_engines(signal.SIGCONT)

    assert house.ended(job_id).state == "cancelled"


def test_with_a_key_the_job_outlives_the_connection(house: House, client: OpenAI) -> None:
    asked: Any = GREEDY | {"messages": CHAT, "max_tokens": 300, "extra_headers": {"Idempotency-Key": "once"}}
    with client.chat.completions.create(stream=True, **asked) as stream:
        job_id = next(stream).id
    again = client.chat.completions.create(**asked)

    assert again.id == job_id
    assert house.job(job_id).state == "succeeded"
    assert texts_of(client.chat.completions.create(stream=True, **asked))[0] == again.choices[0].message.content
    with pytest.raises(APIStatusError) as refused:
        client.chat.completions.create(**(asked | {"max_tokens": 5}))
    assert (refused.value.status_code, refused.value.code) == (400, "idempotency_key_reused")


@pytest.mark.parametrize("streamed", [False, True])
def test_a_job_that_is_cancelled_elsewhere_is_an_error_and_is_not_repeated(
    house: House, client: OpenAI, streamed: bool
) -> None:
    before = house.count_jobs()
    house.signal_engines(signal.SIGSTOP)

    def ask() -> Any:
        answer: Any = client.chat.completions.create(messages=CHAT, max_tokens=900, stream=streamed, **GREEDY)
        return list(answer) if streamed else answer

    with ThreadPoolExecutor() as pool:
        asking = pool.submit(ask)
        try:
            eventually(lambda: house.count_jobs() > before, "the job")
            job = house.newest_job()
            with house.world.database.transaction() as session:
                jobs.cancel(session, job.tenant_id, job.id)
        finally:
            house.signal_engines(signal.SIGCONT)
        with pytest.raises(APIError) as stopped:
            asking.result()

    assert stopped.value.code == "job_stopped"
    assert job.id in stopped.value.message
    assert house.count_jobs() == before + 1
