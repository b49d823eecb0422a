"""Jobs of the kind `score`: what they may ask for, what they are told with, and what they are charged."""

from typing import Any

import pytest
from penstock.jobs.journal import JournalEntry, PromptToken
from penstock.jobs.models import Job
from penstock.registry.models import Deployment

from tests.platform.api.conftest import Caller, Worker, stream

pytestmark = pytest.mark.usefixtures("deployment")
BODY = {"kind": "score", "model": "tiny", "input": {"prompt": "hello there", "continuation": " you"}}


def score_it(worker: Worker) -> None:
    """What a worker does with a score."""
    held = worker.claim()
    prompt = (PromptToken(5, None), PromptToken(6, -0.5), PromptToken(7, -1.25))
    worker.entries.append(JournalEntry(0, 0, None, "", None, held.fence, prompt=prompt))
    worker.finish()


def test_it_is_kept_with_what_a_score_has(caller: Caller) -> None:
    job = caller.post("/v1/jobs", BODY | {"params": {"prompt_logprobs": 2}}).json
    assert (job["kind"], job["params"], job["input"]) == ("score", {"prompt_logprobs": 2}, BODY["input"])
    assert job["usage"]["prompt_tokens"] == 3
    assert caller.post("/v1/jobs", BODY).json["params"] == {"prompt_logprobs": None}


def test_its_document_and_stream_have_the_total(caller: Caller, worker: Worker) -> None:
    job_id = caller.submit(**BODY)
    score_it(worker)

    job = caller.get(f"/v1/jobs/{job_id}").json
    assert job["output"]["score"] == {"tokens": 2, "logprob": -1.75}
    assert job["usage"]["output_tokens"] == 0
    events = list(stream(caller, job_id))
    assert [event.type for event in events][-3:] == ["output.delta", "output.delta", "job.succeeded"]
    assert [token["logprob"] for token in events[-3].data["prompt_logprobs"]] == [None, -0.5, -1.25]
    assert events[-1].data["job"]["output"] == job["output"]


def test_it_is_tried_again_as_what_it_was(caller: Caller, worker: Worker) -> None:
    job_id = caller.submit(**BODY, params={"prompt_logprobs": 1})
    score_it(worker)
    again = caller.post(f"/v1/jobs/{job_id}/retry").json
    assert (again["kind"], again["params"], again["input"]) == ("score", {"prompt_logprobs": 1}, BODY["input"])


def test_it_may_cost_its_prompt_and_no_more(caller: Caller, deployment: Deployment) -> None:
    full = {"token_ids": [5] * deployment.context_length}
    job = caller.post("/v1/jobs", BODY | {"input": full, "budget": {"tokens": deployment.context_length}})
    assert job.status_code == 202
    longer = caller.post("/v1/jobs", BODY | {"input": {"token_ids": [5] * (deployment.context_length + 1)}})
    assert (longer.status_code, longer.json["code"]) == (400, "context_length_exceeded")
    dearer = caller.post("/v1/jobs", BODY | {"input": {"token_ids": [5, 6]}, "budget": {"tokens": 1}})
    assert dearer.json["field"] == "budget.tokens"


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"params": {"max_tokens": 5}}, "params.max_tokens"),
        ({"params": {"temperature": 1.0}}, "params.temperature"),
        ({"params": {"seed": 1, "prompt_logprobs": 1}}, "params.seed"),
        ({"params": {"n": 1}}, "params.n"),
        ({"params": {"logprobs": True}}, "params.logprobs"),
        ({"params": {"response_format": {"type": "json_object"}}}, "params.response_format"),
        ({"kind": "generate"}, "input.continuation"),
        ({"kind": "translate"}, "kind"),
        ({"input": {"token_ids": [5]}}, "input"),
        ({"input": {"token_ids": [5, 6], "continuation": "x"}}, "input.continuation"),
        ({"input": {"prompt": "x", "continuation_token_ids": [5]}}, "input.continuation_token_ids"),
        ({"input": {"token_ids": [5], "continuation_token_ids": [5000]}}, "input.continuation_token_ids"),
        ({"input": {"prompt": "x", "continuation": ""}}, "input.continuation"),
    ],
)
def test_what_is_no_score_is_refused_by_its_name(caller: Caller, wrong: Any, field: str) -> None:
    refused = caller.post("/v1/jobs", BODY | wrong)
    assert (refused.status_code, refused.json["code"], refused.json["field"]) == (422, "validation_failed", field)
    assert caller.get("/v1/jobs").json["data"] == []
    assert "score" in refused.json["detail"] or field != "kind"


def test_a_row_keeps_all_parameters_at_their_defaults(caller: Caller, worker: Worker) -> None:
    caller.submit(**BODY)
    worker.claim()
    with worker.database.transaction() as session:
        (job,) = session.query(Job).all()
        assert (job.params["n"], job.params["logprobs"], job.params["tools"]) == (1, False, [])
