"""The text that a job works by: its tenant's alone, and never the same to calibrate and to evaluate."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from penstock.compressions.gathering import Gathered, Gatherer, NoText
from penstock.compressions.schemas import asked_by
from penstock.compressions.texts import text_of
from penstock.db import Database

from tests.platform.api.conftest import Caller, Worker, app, caller, deployment, make_caller, worker
from tests.platform.batches.conftest import form, upload

__all__ = ["app", "caller", "deployment", "make_caller", "worker"]  # fixtures
GPTQ = {"scheme": "int4", "method": "gptq"}


@pytest.fixture
def gather(app: Flask, database: Database, caller: Caller) -> Callable[..., Gathered]:
    def gathered(kind: str = "quantize", tenant_id: str | None = None, **asked: Any) -> Gathered:
        stored = {"recipe": GPTQ} | asked if kind == "quantize" else {"against": "tiny"} | asked
        with database.transaction() as session:
            storage = app.extensions["penstock"].storage
            return Gatherer(session, storage, tenant_id or caller.tenant_id, "tiny").for_request(
                asked_by(kind, stored, "tiny")
            )

    return gathered


@pytest.fixture
def answered(caller: Caller, worker: Worker) -> None:
    """Five jobs, the last of them the newest."""
    for number in range(5):
        caller.submit(input={"prompt": f"q{number} "})
        worker.claim()
        worker.write(f"a{number}")
        worker.finish()


@pytest.mark.usefixtures("answered")
def test_the_newest_jobs_calibrate_and_those_after_them_evaluate(gather: Callable[..., Gathered]) -> None:
    both = gather(calibration={"from": "jobs", "count": 2}, evaluate={"data": {"from": "jobs", "count": 2}})
    assert both.calibration == ['{"text": "q4 a4"}', '{"text": "q3 a3"}']
    assert both.evaluation == ['{"prompt": "q2 ", "completion": "a2"}', '{"prompt": "q1 ", "completion": "a1"}']
    few = gather(calibration={"from": "jobs", "count": 64})
    assert (len(few.calibration or ()), len(few.evaluation or ())) == (2, 3)
    assert gather(calibration={"from": "jobs"}, evaluate=False).evaluation is None
    assert gather(recipe={"scheme": "int8"}).calibration is None
    assert gather("evaluate", data={"from": "jobs", "count": 1}).evaluation == ['{"prompt": "q4 ", "completion": "a4"}']


@pytest.mark.usefixtures("answered")
def test_another_tenants_jobs_are_no_text_unless_all_tenants_are_asked_for(
    gather: Callable[..., Gathered], make_caller: Callable[..., Caller]
) -> None:
    stranger = make_caller().tenant_id
    with pytest.raises(NoText):
        gather("evaluate", stranger, data={"from": "jobs"})
    everybodys = gather("evaluate", stranger, data={"from": "jobs", "all_tenants": True})
    assert len(everybodys.evaluation or ()) == 5


def test_a_files_last_fifth_evaluates(gather: Callable[..., Gathered], caller: Caller) -> None:
    lines = [json.dumps({"text": f"line {number}"}) for number in range(10)]
    file_id = upload(caller, form({"purpose": "batch"}, "\n".join(lines).encode())).json["id"]
    divided = gather(calibration={"from": "file", "file_id": file_id})
    assert (divided.calibration, divided.evaluation) == (lines[:8], lines[8:])
    whole = gather("evaluate", data={"from": "file", "file_id": file_id})
    assert whole.evaluation == lines
    with pytest.raises(NoText, match="is gone"):
        gather("evaluate", data={"from": "file", "file_id": "file_none"})


def test_a_jobs_text_is_what_the_model_saw() -> None:
    said = {"choices": [{"text": ""}, {"text": "yes"}]}
    chat = {"messages": [{"role": "user", "content": "?", "tool_calls": None}]}
    with_result = {"messages": [*chat["messages"], {"role": "tool", "content": "5", "tool_call_id": "call_1"}]}
    found = text_of(chat, {}, said)
    assert found is not None
    answer = {"role": "assistant", "content": "yes"}
    assert found.to_calibrate == found.to_evaluate == {"messages": [{"role": "user", "content": "?"}, answer]}
    for asked, params, output in (
        (chat, {"tools": [{}]}, said),
        (with_result, {}, said),
        ({"token_ids": [1]}, {}, said),
        (chat, {}, {"choices": [{"text": ""}]}),
        (chat, {}, None),
    ):
        assert text_of(asked, params, output) is None
