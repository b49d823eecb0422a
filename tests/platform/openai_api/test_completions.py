"""`openai.completions` against the running house, as evaluation harnesses use it."""

from typing import Any

import pytest
from openai import BadRequestError, OpenAI

from tests.platform.openai_api.conftest import GREEDY, House

PROMPT = "Invoice 7 of Händler & Co"


def test_a_prompt_is_continued_by_sixteen_tokens(house: House, client: OpenAI) -> None:
    answer = client.completions.create(prompt=PROMPT, **GREEDY)

    (choice,) = answer.choices
    job = house.job(answer.id)
    assert (choice.text, choice.finish_reason) == ((job.output or {})["choices"][0]["text"], "length")
    assert (job.input, job.params["max_tokens"]) == ({"prompt": PROMPT}, 16)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16
    assert choice.logprobs is None


def test_each_of_several_prompts_is_a_job(house: House, client: OpenAI) -> None:
    prompts = [PROMPT, "Total: 12.50", "IBAN"]
    asked: Any = GREEDY | {"temperature": 1, "seed": 9, "n": 2, "max_tokens": 6}
    before = house.count_jobs()
    answer = client.completions.create(prompt=prompts, **asked)
    assert house.count_jobs() == before + 3

    alone = [client.completions.create(prompt=prompt, **asked) for prompt in prompts]
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert [choice.text for choice in answer.choices] == [choice.text for one in alone for choice in one.choices]
    assert answer.usage is not None
    assert answer.usage.total_tokens == sum(one.usage.total_tokens for one in alone if one.usage)
    streamed = [""] * 6
    for chunk in client.completions.create(prompt=prompts, stream=True, **asked):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == [choice.text for choice in answer.choices]


def test_a_prompt_of_token_ids_is_the_prompt(house: House, client: OpenAI) -> None:
    ids = house.tokenizer.encode_input({"prompt": PROMPT})
    told: Any = GREEDY | {"max_tokens": 8, "echo": True}
    answers = [client.completions.create(prompt=prompt, **told) for prompt in (PROMPT, ids, [ids])]

    assert len({answer.choices[0].text for answer in answers}) == 1
    assert answers[1].choices[0].text.startswith(PROMPT)
    assert house.job(answers[1].id).input == {"token_ids": ids}
    with pytest.raises(BadRequestError) as refused:
        client.completions.create(prompt=[5, 100_000], model="tiny")
    assert (refused.value.param, "100000" in refused.value.message) == ("prompt", True)


def test_echoed_log_probabilities_are_those_of_the_prompt_and_then_of_the_output(house: House, client: OpenAI) -> None:
    ids = house.tokenizer.encode_input({"prompt": PROMPT})
    asked: Any = GREEDY | {"prompt": [ids], "echo": True, "logprobs": 2, "max_tokens": 3}
    answer = client.completions.create(**asked)

    (choice,) = answer.choices
    told = choice.logprobs
    assert told is not None
    assert told.tokens is not None
    assert told.token_logprobs is not None
    assert told.top_logprobs is not None
    assert told.text_offset is not None
    assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == len(ids) + 3
    output = house.job(answer.id).output or {}
    native = [*output["prompt_logprobs"], *output["choices"][0]["logprobs"]]
    assert told.token_logprobs == [token["logprob"] for token in native]
    assert told.token_logprobs[0] is None
    ends = [*told.text_offset[1:], len(choice.text)]
    spans = [choice.text[begin:end] for begin, end in zip(told.text_offset, ends, strict=True)]
    assert "".join(spans) == choice.text
    whole = [(token, span) for token, span in zip(told.tokens, spans, strict=True) if not token.startswith("bytes:")]
    assert all(token == span for token, span in whole)
    for token, logprob, top in list(zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True))[1:]:
        assert top[token] == logprob
        assert len(top) in (2, 3)
    assert all(
        lp == max(top.values()) for lp, top in zip(told.token_logprobs[-3:], told.top_logprobs[-3:], strict=True)
    )


def test_an_echo_of_no_new_tokens_is_a_score_of_the_prompt(house: House, client: OpenAI) -> None:
    asked: Any = GREEDY | {"prompt": [PROMPT, "Total: 12.50"], "echo": True, "logprobs": 1}
    longer = client.completions.create(max_tokens=1, **asked)
    answer = client.completions.create(max_tokens=0, **asked)

    assert house.newest_job().kind == "score"
    assert [choice.text for choice in answer.choices] == [PROMPT, "Total: 12.50"]
    assert [choice.finish_reason for choice in answer.choices] == ["length", "length"]
    for choice, other in zip(answer.choices, longer.choices, strict=True):
        assert choice.logprobs is not None
        assert other.logprobs is not None
        assert choice.logprobs.tokens == (other.logprobs.tokens or [])[:-1]
        told, more = choice.logprobs.token_logprobs or [], other.logprobs.token_logprobs or []
        assert told[1:] == pytest.approx(more[1:-1], abs=1e-3)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 0
    chunks = list(client.completions.create(max_tokens=0, stream=True, **asked | {"prompt": PROMPT}))
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == PROMPT


def test_a_stream_echoes_the_same(client: OpenAI) -> None:
    asked: Any = GREEDY | {"prompt": PROMPT, "echo": True, "logprobs": 1, "max_tokens": 5}
    (whole,) = client.completions.create(**asked).choices
    chunks = [chunk.choices[0] for chunk in client.completions.create(stream=True, **asked)]

    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert chunks[0].text.startswith(PROMPT)
    assert whole.logprobs is not None
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        told = [value for chunk in chunks if chunk.logprobs for value in getattr(chunk.logprobs, name)]
        assert told == getattr(whole.logprobs, name), name


def test_the_best_of_several_is_told(house: House, client: OpenAI) -> None:
    asked: Any = GREEDY | {"prompt": PROMPT, "temperature": 1, "seed": 2, "max_tokens": 4}
    answer = client.completions.create(best_of=4, logprobs=0, **asked)

    every = client.completions.create(n=4, logprobs=0, **asked)
    sums = [sum(choice.logprobs.token_logprobs or []) for choice in every.choices if choice.logprobs]
    assert answer.choices[0].text == every.choices[sums.index(max(sums))].text
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"suffix": "end"}, "suffix"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", [1]]}, None),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"logprobs": 21}, "logprobs"),
        ({"echo": True, "logprobs": -1}, "logprobs"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 0, "echo": True, "n": 2}, "n"),
        ({"prompt": "0123456789" * 500}, "prompt"),
    ],
)
def test_what_is_wrong_is_named(client: OpenAI, wrong: dict[str, Any], param: str | None) -> None:
    asked: Any = {"model": "tiny", "prompt": PROMPT, "max_tokens": 1} | wrong
    if param is None:  # texts and token ids side by side are fine
        assert len(client.completions.create(**asked).choices) == 2
        return
    with pytest.raises(BadRequestError) as refused:
        client.completions.create(**asked)
    assert refused.value.param == param
    assert "params." not in refused.value.message
