"""Jobs that quantize and evaluate come in over REST: who may send them, what is refused, and what is kept."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from penstock.auth.services import Scope
from penstock.compressions.lane import holder
from penstock.compressions.models import Compression
from penstock.db import Database
from penstock.jobs import lease
from penstock.jobs.models import Job
from penstock.jobs.schemas import JobRequest
from penstock.outbox.relay import free_slots
from penstock.registry.hosting_services import WorkerCard, register_worker, wanted_deployments
from penstock.registry.models import LANE_ID, Deployment
from penstock.registry.reconcile import reconcile
from penstock.routing.services import choose
from pydantic import ValidationError
from sqlalchemy import select

from tests.factories import make_deployment
from tests.platform.api.conftest import Caller, Worker, app, caller, deployment, make_caller, worker
from tests.platform.batches.conftest import form, upload

__all__ = ["app", "caller", "deployment", "make_caller", "worker"]  # fixtures

SLOTS = 4  # of a worker that a test makes
QUANTIZE: dict[str, Any] = {"kind": "quantize", "model": "tiny@champion", "recipe": {"scheme": "int4"}}
EVALUATE: dict[str, Any] = {"kind": "evaluate", "model": "tiny:1", "against": "tiny"}
WITHOUT_TEXT: dict[str, Any] = QUANTIZE | {"evaluate": False}


def answered(caller: Caller, worker: Worker, text: str = "Hi", **body: Any) -> str:
    job_id = caller.submit(**body)
    worker.claim()
    worker.write(text)
    worker.finish()
    return job_id


def refused(answer: Any, status: int, code: str, field: str | None = None) -> str:
    assert (answer.status_code, answer.json["code"], answer.json.get("field")) == (status, code, field), answer.text
    return str(answer.json["detail"])


@pytest.mark.usefixtures("deployment")
def test_a_quantization_is_a_job_like_others(caller: Caller, database: Database) -> None:
    asked = WITHOUT_TEXT | {"tags": ["mine"], "priority": 3, "metadata": {"why": "smaller"}}
    first = caller.post("/v1/jobs", asked, Idempotency_Key="once")
    again = caller.post("/v1/jobs", asked, Idempotency_Key="once")

    assert (first.status_code, again.status_code, again.json["id"]) == (202, 202, first.json["id"])
    document = caller.get(f"/v1/jobs/{first.json['id']}").json
    assert {name: document[name] for name in ("kind", "status", "model_name", "model_version", "params", "class")} == {
        "kind": "quantize", "status": "queued", "model_name": "tiny", "model_version": "1", "params": {},
        "class": "batch",
    }  # fmt: skip
    assert document["input"]["recipe"]["scheme"] == "int4"
    assert document["queue"]["blocker_code"] == "no_worker"
    assert "PENSTOCK_COMPRESSIONS" in document["queue"]["blocker"]
    assert [event["type"] for event in document["timeline"]] == ["job.queued"]
    assert document["output"] is None
    with database.transaction() as session:
        kept = session.get_one(Compression, first.json["id"])
        assert (kept.model["name"], kept.model["version"], kept.model["source"]) == ("tiny", "1", "/nowhere")
    assert caller.post(f"/v1/jobs/{first.json['id']}/cancel").json["status"] == "cancelled"
    retried = caller.post(f"/v1/jobs/{first.json['id']}/retry").json
    assert (retried["kind"], retried["input"], retried["retry_of"]) == ("quantize", document["input"], document["id"])
    assert (retried["priority"], retried["tags"]) == (3, ["mine"])
    assert caller.call("DELETE", f"/v1/jobs/{document['id']}").status_code == 204
    with database.transaction() as session:
        assert list(session.scalars(select(Compression.job_id))) == [retried["id"]]


def test_neither_path_claims_what_is_the_others(caller: Caller, worker: Worker, database: Database) -> None:
    ordinary = caller.submit()
    quantization = caller.post("/v1/jobs", WITHOUT_TEXT).json["id"]

    def claimed(worker_id: str, deployment_id: str) -> list[str]:
        found = []
        with database.transaction() as session:
            while claim := lease.claim(session, worker_id=worker_id, deployment_id=deployment_id, lease_seconds=30):
                found.append(claim.job.id)
        return found

    assert claimed(holder(worker.id), LANE_ID) == [quantization]
    with database.transaction() as session:
        assert free_slots(session, worker.deployment_id) == SLOTS, "it takes a slot of those who generate"
    assert claimed(worker.id, worker.deployment_id) == [ordinary]


def test_the_lane_is_no_model_that_anybody_hosts_or_asks_for(caller: Caller, database: Database) -> None:
    with database.transaction() as session:
        make_deployment(session)
    caller.post("/v1/jobs", WITHOUT_TEXT)
    with database.transaction() as session:
        reconcile(session, [])
        lane = session.get_one(Deployment, LANE_ID)
        assert lane.state == "retired"
        assert lane.id not in {wanted.id for wanted in wanted_deployments(session)}
        with pytest.raises(Exception, match="no version"):
            choose(session, f"{lane.model_name}:{lane.model_version}")
    assert LANE_ID not in caller.get("/v1/models").text
    assert caller.post("/v1/jobs", QUANTIZE | {"model": "(files):0"}).status_code == 404


@pytest.mark.usefixtures("deployment")
def test_a_live_worker_with_a_place_is_about_to_take_it(caller: Caller, database: Database) -> None:
    with database.transaction() as session:
        register_worker(session, WorkerCard("wrk_1", "here", 1, "cpu", 4, file_jobs=1))
    first, second = (caller.post("/v1/jobs", WITHOUT_TEXT).json["id"] for _ in range(2))

    def blocker(job_id: str) -> tuple[str, int]:
        queue = caller.get(f"/v1/jobs/{job_id}").json["queue"]
        return queue["blocker_code"], queue["position"]

    assert blocker(first) == ("doorbell", 1)
    assert blocker(second) == ("slots_full", 2)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (QUANTIZE | {"recipe": {"scheme": "int5"}}, "recipe.scheme"),
        (QUANTIZE | {"recipe": {"scheme": "int4", "group": 12}}, "recipe.group"),
        (QUANTIZE | {"recipe": {"scheme": "int4", "method": "smoothquant"}}, "recipe.method"),
        (QUANTIZE | {"recipe": {"scheme": "int4"}, "calibration": {"from": "jobs"}}, "calibration"),
        (QUANTIZE | {"recipe": {"scheme": "int4", "method": "gptq"}, "calibration": {"from": "x"}}, "calibration"),
        (
            QUANTIZE | {"recipe": {"scheme": "int4", "method": "gptq"}, "calibration": {"from": "jobs", "count": 0}},
            "calibration.count",
        ),
        (QUANTIZE | {"name": "no such/name"}, "name"),
        (QUANTIZE | {"alias": "champion"}, "alias"),
        (QUANTIZE | {"input": {"prompt": "x"}}, "input"),
        (QUANTIZE | {"deadline": "2020-01-01T00:00:00Z"}, "deadline"),
        ({"kind": "evaluate", "model": "tiny"}, "against"),
        (EVALUATE | {"data": {"from": "jobs", "all": True}}, "data.all"),
        (QUANTIZE, "evaluate"),
        (QUANTIZE | {"recipe": {"scheme": "int4", "method": "gptq"}}, "calibration"),
        (EVALUATE, "data"),
    ],
)
@pytest.mark.usefixtures("deployment")
def test_what_is_wrong_is_named(caller: Caller, body: dict[str, Any], field: str) -> None:
    refused(caller.post("/v1/jobs", body), 422, "validation_failed", field)


@pytest.mark.usefixtures("deployment")
def test_versions_and_files_that_are_not_there(caller: Caller) -> None:
    for body, field in ((QUANTIZE | {"model": "none"}, "model"), (EVALUATE | {"against": "tiny:9"}, "against")):
        refused(caller.post("/v1/jobs", body), 404, "model_not_found", field)
    missing = {"from": "file", "file_id": "file_none"}
    refused(caller.post("/v1/jobs", EVALUATE | {"data": missing}), 404, "not_found", "data.file_id")


def test_what_is_compressed_already_is_not_compressed_again(caller: Caller, database: Database) -> None:
    with database.transaction() as session:
        make_deployment(session).recipe = {"scheme": "compressed-tensors"}
    assert "compressed already" in refused(caller.post("/v1/jobs", WITHOUT_TEXT), 422, "validation_failed", "model")


@pytest.mark.usefixtures("deployment")
def test_it_takes_an_administrators_key_and_an_operators_for_what_all_tenants_see(
    make_caller: Callable[..., Caller],
) -> None:
    member, administrator, operator = (
        make_caller((scope,)) for scope in (Scope.JOBS_WRITE, Scope.ADMIN, Scope.OPERATOR)
    )
    everybodys = EVALUATE | {"data": {"from": "jobs", "all_tenants": True}}
    refused(member.post("/v1/jobs", WITHOUT_TEXT), 403, "forbidden", "kind")
    assert administrator.post("/v1/jobs", WITHOUT_TEXT).status_code == 202
    refused(administrator.post("/v1/jobs", WITHOUT_TEXT | {"alias": "challenger"}), 403, "forbidden", "alias")
    refused(administrator.post("/v1/jobs", everybodys), 403, "forbidden", "data")
    assert operator.post("/v1/jobs", WITHOUT_TEXT | {"alias": "challenger"}).status_code == 202
    refused(operator.post("/v1/jobs", everybodys), 422, "validation_failed", "data")  # there is no text yet


@pytest.mark.usefixtures("deployment")
def test_the_limit_of_waiting_jobs_holds_for_them_too(caller: Caller, database: Database, app: Any) -> None:
    services = app.extensions["penstock"]
    limited = services.settings.model_copy(update={"max_queued_jobs": 2})
    services.quotas._settings = limited  # the gate reads it at each request
    done = threading.Barrier(4)
    answers: list[int] = []

    def submit() -> None:
        done.wait()
        answers.append(caller.client.application.test_client().post(
            "/v1/jobs", json=WITHOUT_TEXT, headers={"Authorization": f"Bearer {caller.key}"}
        ).status_code)  # fmt: skip

    threads = [threading.Thread(target=submit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [202, 202, 429, 429]
    with database.transaction() as session:
        assert len(session.scalars(select(Job.id)).all()) == 2


def test_an_ordinary_job_is_none_of_these_kinds() -> None:
    with pytest.raises(ValidationError, match="kind"):
        JobRequest.model_validate({"kind": "quantize", "model": "tiny", "input": {"prompt": "x"}})


def test_calibration_is_the_newest_text_of_the_tenant_alone(
    caller: Caller, worker: Worker, make_caller: Callable[..., Caller]
) -> None:
    for number in range(3):
        answered(caller, worker, f" answer {number}", input={"prompt": f"question {number}"})
    chat = {"messages": [{"role": "user", "content": "Hello"}]}
    answered(caller, worker, "Good day", input=chat)
    stranger = make_caller((Scope.JOBS_READ,))

    found = caller.get("/v1/calibration?model=tiny&count=2").json["data"]
    assert found == [
        {"messages": [*chat["messages"], {"role": "assistant", "content": "Good day"}]},
        {"text": "question 2 answer 2"},
    ]
    assert len(caller.get("/v1/calibration?model=tiny").json["data"]) == 4
    assert stranger.get("/v1/calibration?model=tiny").json["data"] == []
    refused(stranger.get("/v1/calibration?model=tiny&all_tenants=true"), 403, "forbidden", "all_tenants")
    operator = make_caller((Scope.OPERATOR,))
    assert len(operator.get("/v1/calibration?model=tiny&all_tenants=true").json["data"]) == 4
    assert operator.get("/v1/calibration?model=tiny").json["data"] == []


def test_a_file_of_the_sender_is_text_too(
    caller: Caller, make_caller: Callable[..., Caller], deployment: Deployment
) -> None:
    file_id = upload(caller, form({"purpose": "batch"}, b'{"text": "a"}\n')).json["id"]
    body = EVALUATE | {"data": {"from": "file", "file_id": file_id}}
    assert caller.post("/v1/jobs", body).status_code == 202
    refused(make_caller((Scope.ADMIN,)).post("/v1/jobs", body), 404, "not_found", "data.file_id")
