"""What is accepted at submit is accepted by the engine, and what the engine refuses is refused at submit.

The two must not import each other, so this compares them: parameter by parameter, at and beyond each limit.
"""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from penstock.errors import ValidationFailed
from penstock.jobs.fitness import refuse_unfit
from penstock.jobs.lease import Claim
from penstock.jobs.models import Job
from penstock.jobs.params import MAX_CHOICES, MAX_LOGIT_BIAS, MAX_LOGPROBS, JobParams
from penstock.jobs.schemas import JobRequest
from penstock.jobs.structure import structure_of
from penstock.registry.tokenizer import ModelTokenizer
from penstock.registry.vocabulary import Vocabulary
from penstock_engine import Engine, EngineConfig, RequestRefused, SamplingParams, admission
from penstock_worker.engine_requests import request_from
from penstock_worker.messages import Sampling
from penstock_worker.requests import request_of
from penstock_worker.running import RunningJob
from pydantic import ValidationError

SCHEMA: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
BIAS = {str(token): 1.0 for token in range(301)}
CASES: list[dict[str, Any]] = [
    *({"temperature": value} for value in (0, 0.0001, 0.001, 100, 101, -1)),
    *({"top_k": value} for value in (0, 1, 10**6, -1)),
    *({"top_p": value} for value in (0, 0.001, 1, 1.1)),
    *({"min_p": value} for value in (0, 1, -0.1, 1.1)),
    *({"repetition_penalty": value} for value in (0, 0.01, 100, 101)),
    *({name: value} for name in ("presence_penalty", "frequency_penalty") for value in (-2, 2, -2.1, 2.1)),
    *({"logit_bias": value} for value in ({}, {"767": -100}, {"768": 1}, {"3": 101}, {"3": -101}, BIAS)),
    {"logit_bias": dict(list(BIAS.items())[:300])},
    *({"stop_token_ids": value} for value in ([0, 767], [768], [-1])),
    *({"max_tokens": value} for value in (1, 0)),
    *({"min_tokens": value, "max_tokens": 5} for value in (0, 5, 6, -1)),
    *({"logprobs": True, "top_logprobs": value} for value in (0, 20, 21, -1)),
    *({"prompt_logprobs": value} for value in (None, 0, 20, 21, -1)),
    *({"n": value, "max_tokens": 1} for value in (1, 128, 129, 0)),
    *({"seed": value} for value in (0, 2**63 - 1, -1)),
    {"response_format": {"type": "json_object"}},
    {"response_format": {"type": "json_object"}, "ignore_eos": True},
    {"response_format": {"type": "json_object"}, "min_tokens": 1},
    *({"response_format": {"type": "regex", "regex": value}} for value in ("a+", "a(", "(?<=a)b", "a{1,1000000}")),
    *({"response_format": {"type": "lark", "lark": value}} for value in ('start: "a"', "start: b", 'begin: "a"')),
    *(
        {"response_format": {"type": "json_schema", "schema": schema}}
        for schema in (SCHEMA, {"type": "prose"}, {"enum": []}, {"$ref": "#/$defs/x"}, {"not": {}}, {"format": "date"})
    ),
    {"response_format": {"type": "choice", "choice": ["a", "b|c"]}},
]


@pytest.fixture(scope="module")
def engine(model_folder: Path) -> Engine:
    tokenizer = str(model_folder / "tokenizer.json")
    return Engine.from_folder(model_folder, EngineConfig(kv_bytes=2**25, threads=1, tokenizer=tokenizer))


@pytest.fixture(scope="module")
def tokenizer(model_folder: Path) -> ModelTokenizer:
    return ModelTokenizer.from_folder(model_folder)


def accepted_at_submit(model_folder: Path, tokenizer: ModelTokenizer, params: dict[str, Any]) -> bool:
    vocabulary = Vocabulary.from_folder(model_folder, tokenizer.size)
    body = {"model": "tiny", "input": {"prompt": "x"}, "params": params}
    try:
        request = JobRequest.model_validate(body)
        refuse_unfit(
            request,
            prompt_tokens=1,
            context_length=1024,
            vocabulary=lambda: vocabulary,
            structure=lambda: structure_of(params, tokenizer),
        )
    except (ValidationError, ValidationFailed):
        return False
    return True


def accepted_by_the_engine(engine: Engine, tokenizer: ModelTokenizer, params: dict[str, Any]) -> bool:
    """What the engine says of a job with these parameters, whatever the submission would have said."""
    row = Job(id="job_a", tenant_id="ten", params=params, seed=params.get("seed", 1), priority=0, job_class=0)
    job = RunningJob(Claim(row, 1, []), claimed_at=0, lease_until=0)
    job.restore([], tokenizer, [5, 6])
    request = request_of(job)
    try:
        engine.submit(request_from(request))
    except RequestRefused:
        return False
    return engine.abort(request.request_id)


@pytest.mark.parametrize("params", CASES, ids=lambda params: json.dumps(params)[:60])
def test_submission_and_engine_agree(
    engine: Engine, tokenizer: ModelTokenizer, model_folder: Path, params: dict[str, Any]
) -> None:
    assert accepted_at_submit(model_folder, tokenizer, params) == accepted_by_the_engine(engine, tokenizer, params)


def test_the_limits_that_have_a_name_are_equal() -> None:
    assert (MAX_CHOICES, MAX_LOGPROBS, MAX_LOGIT_BIAS) == (
        admission.MAX_CHOICES,
        admission.MAX_LOGPROBS,
        admission.MAX_LOGIT_BIAS,
    )


def test_the_request_has_every_parameter_of_the_engine() -> None:
    """By name and default; `best_of` is the worker's own."""
    engines = {field.name: field.default for field in fields(SamplingParams) if field.name != "best_of"}
    assert dict(zip(Sampling.__struct_fields__, Sampling.__struct_defaults__, strict=True)) == engines


def test_the_engine_has_every_parameter_of_a_job() -> None:
    """But those that the worker itself sees to, and those that are a grammar there."""
    by_the_worker = {"stop", "best_of", "top_logprobs"}
    grammars = {"response_format", "tools", "tool_choice", "parallel_tool_calls"}
    assert set(JobParams.model_fields) - by_the_worker - grammars <= set(Sampling.__struct_fields__)
