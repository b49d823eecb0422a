"""Submitting, reading, listing, cancelling and retrying jobs over HTTP."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from penstock.auth.models import Tenant
from penstock.clock import utc_now
from penstock.db import Database
from penstock.jobs.documents import JobDetail, JobDocument, JobPage
from penstock.jobs.models import Job
from penstock.jobs.states import JobState
from penstock.registry.models import Deployment
from redis import Redis
from sqlalchemy import select

from tests.platform.api.conftest import BODY, Caller, Worker

pytestmark = pytest.mark.usefixtures("deployment")


def test_a_submitted_job_is_queued_and_found_where_the_answer_says(caller: Caller) -> None:
    answer = caller.post("/v1/jobs", BODY | {"tags": ["a"], "metadata": {"k": "v"}, "priority": 3})

    assert answer.status_code == 202
    assert answer.headers["Location"] == f"/v1/jobs/{answer.json['id']}"
    job = caller.get(answer.headers["Location"]).json
    JobDetail.model_validate(job)
    assert job["status"] == "queued"
    assert (job["tags"], job["metadata"], job["priority"]) == (["a"], {"k": "v"}, 3)
    assert job["model_version"] == "1"
    assert job["usage"]["prompt_tokens"] == 2
    assert [event["type"] for event in job["timeline"]] == ["job.queued"]


def test_the_answer_is_what_the_document_says(caller: Caller) -> None:
    JobDocument.model_validate(caller.post("/v1/jobs", BODY).json)
    JobPage.model_validate(caller.get("/v1/jobs").json)


def test_a_waiting_job_says_where_it_stands_and_what_it_waits_for(caller: Caller) -> None:
    first, second = caller.submit(), caller.submit()

    assert caller.get(f"/v1/jobs/{first}").json["queue"]["position"] == 1
    queue = caller.get(f"/v1/jobs/{second}").json["queue"]
    assert queue == {
        "position": 2,
        "position_is_exact": True,
        "ahead": {"own": 1, "others": 0, "own_jobs": [first]},
        "blocker": "no worker hosts version 1 of tiny: no worker is live",
        "blocker_code": "no_worker",
        "loading_progress": None,
        "eta": None,
        "eta_unknown": "not_served",
    }


def test_a_waiting_job_says_when_its_answer_should_come(caller: Caller, worker: Worker) -> None:
    caller.submit()
    worker.claim()
    worker.write("done")
    worker.finish()
    job = caller.get(f"/v1/jobs/{caller.submit()}").json
    queue = JobDetail.model_validate(job).queue
    assert queue is not None
    assert queue.eta is not None
    assert (queue.blocker_code, queue.eta_unknown) == ("doorbell", None)
    assert (queue.eta.coverage, queue.eta.based_on) == (0.8, 1)
    assert queue.eta.earliest <= queue.eta.latest


def test_other_tenants_ahead_are_counted_and_not_named(make_caller: Callable[..., Caller]) -> None:
    mine, other = make_caller(), make_caller()
    theirs = [other.submit() for _ in range(2)]
    own = [mine.submit() for _ in range(3)]
    answer = mine.get(f"/v1/jobs/{own[-1]}")
    ahead = answer.json["queue"]["ahead"]
    assert ahead == {"own": 2, "others": 2, "own_jobs": own[:2]}
    assert not any(job_id in answer.text for job_id in theirs)


def test_a_running_job_shows_its_output_so_far(caller: Caller, worker: Worker) -> None:
    job_id = caller.submit()
    worker.claim()
    worker.write("Hel", "lo")

    job = caller.get(f"/v1/jobs/{job_id}").json
    assert (job["status"], job["queue"]) == ("running", None)
    assert job["output"]["choices"][0]["text"] == "Hello"
    assert job["run_history"][0]["worker"] == worker.id


def test_a_running_job_shows_its_checkpoint_where_redis_has_lost_it(
    caller: Caller, worker: Worker, redis: Redis
) -> None:
    job_id = caller.submit()
    worker.claim()
    worker.write("Hel")
    worker.checkpoint()
    redis.flushall()

    assert caller.get(f"/v1/jobs/{job_id}").json["output"]["choices"][0]["text"] == "Hel"


def test_waiting_answers_200_as_soon_as_the_job_is_over(caller: Caller, worker: Worker) -> None:
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(caller.post, "/v1/jobs", BODY, Prefer="wait=60")
        _claim_when_it_is_there(worker, answer)
        worker.write("done")
        worker.finish()
        response = answer.result()

    assert response.status_code == 200
    assert response.json["status"] == "succeeded"
    assert response.json["output"]["choices"][0]["text"] == "done"
    assert response.headers["Preference-Applied"] == "wait=60"


def test_waiting_answers_202_when_the_time_is_up(caller: Caller) -> None:
    answer = caller.post("/v1/jobs", BODY, Prefer="respond-async, wait=1")

    assert (answer.status_code, answer.json["status"]) == (202, "queued")


def test_a_wait_that_is_no_number_is_refused_before_anything_is_kept(caller: Caller) -> None:
    answer = caller.post("/v1/jobs", BODY, Prefer="wait=soon")

    assert (answer.status_code, answer.json["field"]) == (422, "Prefer")
    assert caller.get("/v1/jobs").json["data"] == []


def test_listing_pages_through_every_job_once_newest_first(caller: Caller) -> None:
    submitted = [caller.submit() for _ in range(5)]
    seen, after = [], ""
    while True:
        page = caller.get(f"/v1/jobs?limit=2{after}").json
        seen += [job["id"] for job in page["data"]]
        assert page["has_more"] == (page["next"] is not None)
        if not page["has_more"]:
            break
        after = f"&after={page['next']}"

    assert seen == submitted[::-1]


def test_listing_filters(caller: Caller, database: Database) -> None:
    tagged = caller.submit(tags=["red"])
    other = caller.submit(model="tiny:1")
    caller.post(f"/v1/jobs/{other}/cancel")
    with database.transaction() as session:
        session.get_one(Job, tagged).created_at = utc_now() - timedelta(minutes=20)

    def found(query: str) -> list[str]:
        answer = caller.get(f"/v1/jobs?{query}")
        assert answer.status_code == 200, answer.text
        return [job["id"] for job in answer.json["data"]]

    assert found("tag=red") == [tagged]
    assert found("status=cancelled") == [other]
    assert found("status=queued,cancelled") == [other, tagged]
    assert found("model=tiny") == [other, tagged]
    assert found("model=tiny:1") == [other]
    assert found("model=absent") == []
    earlier = (utc_now() - timedelta(minutes=10)).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert found(f"created_after={earlier}") == [other]
    assert found(f"created_before={earlier}") == [tagged]
    assert found(f"finished_after={earlier}&class=interactive") == [other]
    assert found(f"finished_before={earlier}") == []
    assert found("model=tiny&version=1") == [other, tagged]
    assert found("class=batch") == found("error=engine_crashed") == found("key=key_none") == []
    (key,) = caller.get("/v1/keys").json["data"]
    assert found(f"key={key['id']}") == [other, tagged]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("status=done", "status"),
        ("limit=0", "limit"),
        ("limit=many", "limit"),
        ("after=nonsense", "after"),
        ("created_after=yesterday", "created_after"),
        ("created_after=2020-01-01T00:00:00", "created_after"),
        ("created_after=0001-01-01T00:00:00%2B14:00", "created_after"),
        ("colour=red", "colour"),
        ("class=urgent", "class"),
        ("tag=a&tag=b", "tag"),
        ("tag=%00", "tag"),
    ],
)
def test_a_wrong_query_is_refused_naming_the_parameter(caller: Caller, query: str, field: str) -> None:
    answer = caller.get(f"/v1/jobs?{query}")

    assert (answer.status_code, answer.json["code"], answer.json["field"]) == (422, "validation_failed", field)
    assert answer.json["errors"][0]["expected"]


def test_cancelling_a_waiting_job_ends_it_at_once(caller: Caller) -> None:
    job_id = caller.submit()
    answer = caller.post(f"/v1/jobs/{job_id}/cancel")

    assert (answer.status_code, answer.json["status"]) == (200, "cancelled")
    assert caller.get(f"/v1/jobs/{job_id}").json["status"] == "cancelled"


def test_cancelling_a_running_job_asks_its_worker_which_keeps_the_output(caller: Caller, worker: Worker) -> None:
    job_id = caller.submit()
    worker.claim()
    worker.write("half")
    answer = caller.post(f"/v1/jobs/{job_id}/cancel")
    worker.finish(JobState.CANCELLED)

    assert (answer.status_code, answer.json["status"]) == (202, "running")
    assert answer.json["cancel_requested_at"] is not None
    job = caller.get(f"/v1/jobs/{job_id}").json
    assert (job["status"], job["output"]["choices"][0]["text"]) == ("cancelled", "half")


def test_cancelling_a_finished_job_is_a_conflict(caller: Caller) -> None:
    job_id = caller.submit()
    caller.post(f"/v1/jobs/{job_id}/cancel")
    answer = caller.post(f"/v1/jobs/{job_id}/cancel")

    assert (answer.status_code, answer.json["code"]) == (409, "job_already_finished")
    assert "cancelled already" in answer.json["detail"]


def test_a_retry_is_a_new_job_that_names_the_old_one(caller: Caller) -> None:
    job_id = caller.submit(tags=["x"], params={"temperature": 0.5})
    caller.post(f"/v1/jobs/{job_id}/cancel")
    answer = caller.post(f"/v1/jobs/{job_id}/retry")

    assert answer.status_code == 202
    new = caller.get(answer.headers["Location"]).json
    assert (new["retry_of"], new["status"], new["tags"]) == (job_id, "queued", ["x"])
    assert new["params"]["temperature"] == 0.5
    assert new["id"] != job_id


def test_an_unfinished_job_cannot_be_retried(caller: Caller) -> None:
    answer = caller.post(f"/v1/jobs/{caller.submit()}/retry")

    assert (answer.status_code, answer.json["code"]) == (409, "job_not_finished")


def test_the_tenants_own_limit_of_waiting_jobs_holds(caller: Caller, database: Database) -> None:
    with database.transaction() as session:
        session.get_one(Tenant, caller.tenant_id).max_queued_jobs = 2
    caller.submit()
    caller.submit()
    answer = caller.post("/v1/jobs", BODY)

    assert (answer.status_code, answer.json["code"], answer.json["limit"]) == (429, "quota_exceeded", 2)


def test_the_trace_context_is_kept_and_nonsense_is_not(caller: Caller, database: Database) -> None:
    good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    kept = caller.post("/v1/jobs", BODY, traceparent=good).json["id"]
    dropped = caller.post("/v1/jobs", BODY, traceparent="nonsense").json["id"]
    with database.transaction() as session:
        found = {row.id: row.traceparent for row in session.execute(select(Job.id, Job.traceparent))}

    assert found == {kept: good, dropped: None}


def test_models_are_listed_with_version_and_readiness(
    caller: Caller, make_caller: Callable[..., Caller], deployment: Deployment, worker: Worker
) -> None:
    (model,) = caller.get("/v1/models").json["data"]

    assert (model["id"], model["version"], model["ready"], model["state"]) == ("tiny", "1", True, "ready")
    assert model["context_length"] == deployment.context_length


def test_a_model_that_nobody_hosts_is_listed_as_not_ready(caller: Caller) -> None:
    (model,) = caller.get("/v1/models").json["data"]

    assert (model["ready"], model["state"]) == (False, "no worker hosts it")


def test_the_webhook_secret_is_the_tenants_own(caller: Caller, database: Database) -> None:
    with database.transaction() as session:
        expected = session.get_one(Tenant, caller.tenant_id).webhook_secret

    assert caller.get("/v1/webhook-secret").json == {"secret": expected}


def _claim_when_it_is_there(worker: Worker, submission: Future[object]) -> None:
    while True:
        with worker.database.transaction() as session:
            if session.scalar(select(Job.id).where(Job.state == JobState.QUEUED)) is not None:
                break
        assert not submission.done(), submission.result()
    worker.claim()


@pytest.mark.usefixtures("deployment")
def test_parameters_come_back_as_they_were_sent_and_serve_a_retry(caller: Caller) -> None:
    schema = {"type": "object", "properties": {"zebra": {"const": None}, "ant": {}}, "required": ["zebra"]}
    params = {
        "response_format": {"type": "json_schema", "schema": schema},
        "logit_bias": {"17": -3.5},
        "n": 2,
        "best_of": 4,
        "top_logprobs": 3,
        "logprobs": True,
        "prompt_logprobs": 0,
        "min_p": 0.25,
        "repetition_penalty": 1.1,
    }
    job_id = caller.submit(params=params, budget={"tokens": 500})
    for document in (caller.get(f"/v1/jobs/{job_id}").json, _retried(caller, job_id)):
        assert params.items() <= document["params"].items()
        kept = document["params"]["response_format"]["schema"]
        assert list(kept["properties"]) == ["zebra", "ant"]  # an output has them in this order
        assert document["budget"] == {"tokens": 500}


def _retried(caller: Caller, job_id: str) -> Any:
    caller.post(f"/v1/jobs/{job_id}/cancel")
    return caller.post(f"/v1/jobs/{job_id}/retry").json
