"""What submit refuses, how it says so, and that nothing is kept of it."""

from typing import Any

import pytest
from penstock_engine import (
    AlreadyFinished,
    Engine,
    EngineConfig,
    InvalidConfig,
    InvalidRequest,
    InvalidSampling,
    PromptTooLong,
    QueueFull,
    Request,
    RequestRefused,
    RequestTooLarge,
    SamplingParams,
)

from tests.engine.driving import greedy, run_all
from tests.engine.tiny import EOS, VOCABULARY, TinyModel, random_prompt


@pytest.fixture
def engine(llama: TinyModel) -> Engine:
    """Ten pages of 16, a context of 200 tokens: more than the pool holds."""
    config = EngineConfig(dtype="float32", kv_pages=10, max_model_len=200, max_running=4, max_waiting=3)
    return Engine.from_folder(llama.folder, config)


def refused(engine: Engine, error: type[RequestRefused], request: Request) -> Any:
    before = engine.stats()
    with pytest.raises(error) as caught:
        engine.submit(request)
    assert engine.stats() == before
    return caught.value


def test_a_prompt_too_long_names_both_numbers(engine: Engine) -> None:
    error = refused(engine, PromptTooLong, Request("x", random_prompt(200, 0), greedy(1)))
    assert (error.prompt_tokens, error.max_model_len) == (200, 200)
    assert "200 tokens" in str(error)
    assert "at most 199" in str(error)


def test_what_never_fits_the_pool_is_refused_at_once(engine: Engine) -> None:
    error = refused(engine, RequestTooLarge, Request("x", random_prompt(100, 0), greedy(62)))
    assert (error.needed_tokens, error.pool_tokens) == (161, 160)


def test_what_just_fits_the_pool_runs_to_its_end(engine: Engine) -> None:
    run = run_all(engine, [Request("x", random_prompt(100, 0), greedy(61))])
    assert len(run.tokens("x")) == 61
    assert run.finish_reason("x") == "length"


def test_without_max_tokens_the_pool_is_the_limit(engine: Engine) -> None:
    sampling = SamplingParams(temperature=0, ignore_eos=True)
    run = run_all(engine, [Request("x", random_prompt(100, 0), sampling)])
    assert len(run.tokens("x")) == 60


def test_a_full_queue_refuses(engine: Engine) -> None:
    for at in range(3):
        engine.submit(Request(f"r{at}", [1], greedy(1)))
    assert refused(engine, QueueFull, Request("x", [1], greedy(1))).max_waiting == 3


def test_ids_are_unique_among_live_requests(engine: Engine) -> None:
    engine.submit(Request("x", [1], greedy(1)))
    assert refused(engine, InvalidRequest, Request("x", [1], greedy(1))).field == "id"
    run_all(engine)
    assert run_all(engine, [Request("x", [1], greedy(1))]).finish_reason("x") == "length"


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("id", Request("", [1])),
        ("prompt_ids", Request("x", [])),
        ("prompt_ids", Request("x", [0, VOCABULARY])),
        ("prompt_ids", Request("x", [-1])),
        ("output_ids", Request("x", [1], output_ids=[[VOCABULARY]])),
        ("output_ids", Request("x", [1], output_ids=[[1], [2]])),
        ("output_ids", Request("x", [1], SamplingParams(n=2), output_ids=[[1], [2], [3]])),
        ("output_ids", Request("x", [1], SamplingParams(best_of=2), output_ids=[[1]])),
        ("request_class", Request("x", [1], request_class="urgent")),  # type: ignore[arg-type]
    ],
)
def test_wrong_requests_name_the_field(engine: Engine, field: str, request_: Request) -> None:
    error = refused(engine, InvalidRequest, request_)
    assert error.field == field
    assert repr(field) in str(error)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 1e-6),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", float("nan")),
        ("min_p", 1.1),
        ("min_p", -0.1),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", float("nan")),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("logit_bias", ((VOCABULARY, 1.0),)),
        ("logit_bias", ((1, 101.0),)),
        ("logit_bias", ((1, float("nan")),)),
        ("logit_bias", ((1, 1.0), (1, 2.0))),
        ("prompt_logprobs", 21),
        ("n", 0),
        ("n", 129),
        ("best_of", 0),
        ("best_of", 129),
        ("seed", -1),
        ("seed", 2**64),
        ("max_tokens", 0),
        ("min_tokens", -1),
        ("stop_token_ids", (VOCABULARY,)),
        ("logprobs", 21),
        ("logprobs", -1),
    ],
)
def test_wrong_sampling_names_the_field_and_what_would_be_right(engine: Engine, field: str, value: Any) -> None:
    error = refused(engine, InvalidSampling, Request("x", [1], SamplingParams(**{field: value})))
    assert error.field == field
    assert repr(field) in str(error)
    assert "must be" in str(error)


def test_min_tokens_above_max_tokens(engine: Engine) -> None:
    sampling = SamplingParams(max_tokens=3, min_tokens=4)
    assert refused(engine, InvalidSampling, Request("x", [1], sampling)).field == "min_tokens"


@pytest.mark.parametrize(
    ("output", "sampling", "reason"),
    [
        ([3, 4, EOS], SamplingParams(max_tokens=9), "stop"),
        ([3, 4, 5], SamplingParams(max_tokens=9, stop_token_ids=(5,)), "stop"),
        ([3, 4, 5], SamplingParams(max_tokens=3), "length"),
        ([3, 4, 5, 6], SamplingParams(max_tokens=3), "length"),
    ],
)
def test_an_output_that_has_ended_is_not_resumed(
    engine: Engine, output: list[int], sampling: SamplingParams, reason: str
) -> None:
    error = refused(engine, AlreadyFinished, Request("x", [1], sampling, output_ids=[output]))
    assert error.finish_reasons == {0: reason}


def test_a_resumed_stop_before_min_tokens_goes_on(engine: Engine) -> None:
    sampling = SamplingParams(temperature=0, max_tokens=5, min_tokens=3)
    run = run_all(engine, [Request("x", [1], sampling, output_ids=[[EOS]])])
    assert run.deltas["x"][0].position == 1


@pytest.mark.parametrize(
    ("field", "config"),
    [
        ("max_running", {"max_running": 0}),
        ("token_budget", {"max_running": 8, "token_budget": 7}),
        ("kv_pages", {"kv_pages": 0}),
        ("dtype", {"dtype": "int8"}),
        ("policy", {"policy": "random"}),
        ("kv_bytes", {"kv_bytes": 1000}),
        ("max_model_len", {"max_model_len": 257}),
        ("device", {"device": "abacus"}),
    ],
)
def test_wrong_settings_name_the_field(llama: TinyModel, field: str, config: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfig, match=repr(field)) as caught:
        Engine.from_folder(llama.folder, EngineConfig(**config))
    assert caught.value.field == field


def test_kv_bytes_size_the_pool(llama: TinyModel) -> None:
    page = 3 * 16 * 2 * 2 * 16 * 4  # layers, slots, K and V, heads, head_dim, float32
    engine = Engine.from_folder(llama.folder, EngineConfig(dtype="float32", kv_bytes=11 * page))
    assert engine.stats().pages_total == 10  # and the null page
