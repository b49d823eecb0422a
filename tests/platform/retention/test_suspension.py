"""A suspended tenant is refused at every door, and its work stands still until it is resumed."""

from collections.abc import Callable
from typing import Any

import pytest
from penstock.auth.key_ring import KeyRing
from penstock.auth.models import User
from penstock.auth.oidc import Identity, find_or_let_in
from penstock.auth.services import create_user
from penstock.batches.models import Batch
from penstock.errors import TenantSuspended
from penstock.fairness.models import FairShare
from penstock.jobs.details import describe
from penstock.jobs.housekeeping import _deployments_with_waiting_jobs
from penstock.jobs.models import Job
from penstock.outbox.relay import count_waiting
from penstock.portal.sessions import session_of
from penstock.settings import Settings
from penstock_worker.consumption import ConsumptionWatch
from sqlalchemy import func, select, update

from tests.platform.api.conftest import BODY, Caller
from tests.platform.batches.conftest import lines
from tests.platform.retention.conftest import Stage

PASSWORD = "a long enough password"


def act(stage: Stage, tenant_id: str, action: str) -> Any:
    return stage.operator.post(f"/v1/admin/tenants/{tenant_id}/{action}")


def test_its_keys_are_refused_until_it_is_resumed(stage: Stage) -> None:
    caller = stage.caller
    suspended = act(stage, caller.tenant_id, "suspend")
    assert (suspended.status_code, suspended.json["suspended_at"] is not None) == (200, True)

    for answer in (caller.get("/v1/jobs"), caller.post("/v1/jobs", BODY), caller.get("/v1/keys")):
        assert (answer.status_code, answer.json["code"]) == (403, "tenant_suspended")
    openai = caller.post("/v1/chat/completions", {"model": "tiny", "messages": [{"role": "user", "content": "x"}]})
    assert (openai.status_code, openai.json["error"]["code"]) == (403, "tenant_suspended")
    assert act(stage, caller.tenant_id, "suspend").json == suspended.json

    assert act(stage, caller.tenant_id, "resume").json["suspended_at"] is None
    assert caller.get("/v1/jobs").status_code == 200
    found = stage.operator.get(f"/v1/admin/audit?tenant={caller.tenant_id}").json["data"]
    assert [entry["action"] for entry in found] == ["tenant.resumed", "tenant.suspended"]


def test_a_process_that_has_just_seen_a_key_takes_it_for_two_seconds_at_most(stage: Stage) -> None:
    remembers = KeyRing(stage.database, "test", seconds=3600)
    remembers.principal(stage.caller.key)
    act(stage, stage.caller.tenant_id, "suspend")
    assert remembers.principal(stage.caller.key).tenant_id == stage.caller.tenant_id
    with pytest.raises(TenantSuspended):
        KeyRing(stage.database, "test").principal(stage.caller.key)


def test_its_people_are_signed_out_and_cannot_sign_in(stage: Stage) -> None:
    client = stage.caller.client
    client.application.config["WTF_CSRF_METHODS"] = set()
    with stage.database.transaction() as session:
        person = create_user(session, tenant_id=stage.caller.tenant_id, email="ann@example.com", password=PASSWORD)
        session.execute(update(User).values(oidc_issuer="https://issuer", oidc_subject="ann"))
    with client.session_transaction() as cookie:
        cookie.update(session_of(person))
    assert client.get("/jobs").status_code == 200

    act(stage, stage.caller.tenant_id, "suspend")

    assert client.get("/jobs").headers["Location"].startswith("/sign-in")
    form = {"email": "ann@example.com", "password": PASSWORD}
    refused = client.post("/sign-in", data=form)
    assert (refused.status_code, "The tenant was suspended" in refused.text) == (403, True)
    assert client.post("/sign-in", data=form | {"password": "wrong"}).status_code == 401
    with stage.database.transaction() as session, pytest.raises(TenantSuspended):
        find_or_let_in(session, Identity("https://issuer", "ann", "ann@example.com"), tenant_name=None)
    act(stage, stage.caller.tenant_id, "resume")
    assert client.post("/sign-in", data=form).status_code == 303


def test_its_waiting_jobs_stay_and_say_so_and_others_go_on(
    stage: Stage, make_caller: Callable[..., Caller], settings: Settings
) -> None:
    other = make_caller()
    running, waiting = stage.caller.submit(), stage.caller.submit()
    held = stage.bench.claim()
    assert held is not None
    theirs = other.submit()
    act(stage, stage.caller.tenant_id, "suspend")

    with stage.database.transaction() as session:
        queue = describe(session, stage.caller.tenant_id, waiting)["queue"]
    assert (queue["blocker_code"], queue["position"], queue["eta_unknown"]) == ("tenant_suspended", None, "held")
    assert other.get(f"/v1/jobs/{theirs}").json["queue"]["position"] == 1
    claimed = stage.bench.claim()
    assert claimed is not None
    assert claimed.job_id == theirs
    assert stage.bench.claim() is None
    stage.bench.finish(held)  # what runs ends normally
    with stage.database.transaction() as session:
        assert count_waiting(session, stage.bench.deployment_id, at_most=9) == 0
        assert _deployments_with_waiting_jobs(session) == []
    watch = ConsumptionWatch(
        stage.database, stage.redis, lambda: [stage.bench.deployment_id], lambda _: None, stall_seconds=1e-9
    )
    assert not watch._some_wait([stage.bench.deployment_id])

    act(stage, stage.caller.tenant_id, "resume")
    assert watch._some_wait([stage.bench.deployment_id])
    with stage.database.transaction() as session:
        assert count_waiting(session, stage.bench.deployment_id, at_most=9) == 1
    last = stage.bench.claim()
    assert last is not None
    assert last.job_id == waiting
    assert stage.caller.get(f"/v1/jobs/{running}").json["status"] == "succeeded"


def test_it_comes_back_at_the_least_of_the_others(stage: Stage, make_caller: Callable[..., Caller]) -> None:
    other = make_caller()
    stage.caller.submit()
    act(stage, stage.caller.tenant_id, "suspend")
    other.submit()
    other.submit()
    stage.finish_next()
    act(stage, stage.caller.tenant_id, "resume")
    with stage.database.transaction() as session:
        charged = dict(session.execute(select(FairShare.tenant_id, FairShare.charged)).all())
    assert charged[stage.caller.tenant_id] == charged[other.tenant_id] > 0


def test_its_batches_make_no_more_jobs(stage: Stage) -> None:
    bench = stage.bench
    batch_id = bench.make(lines(9))
    bench.tend()
    bench.serve(most=2)
    act(stage, stage.caller.tenant_id, "suspend")
    bench.tend()

    with stage.database.transaction() as session:
        batch = session.get_one(Batch, batch_id)
        assert session.scalar(select(func.count()).select_from(Job)) == 6
        assert batch.blocker is not None
        assert (batch.blocker["code"], batch.settled) == ("tenant_suspended", 2)
    act(stage, stage.caller.tenant_id, "resume")
    done = bench.run_to_end(batch_id)
    assert (done["request_counts"]["completed"], done["status"]) == (9, "completed")


def test_nobody_suspends_the_tenant_that_they_act_in(stage: Stage) -> None:
    refused = act(stage, stage.operator.tenant_id, "suspend")
    assert (refused.status_code, refused.json["code"]) == (409, "own_tenant")
    assert act(stage, "ten_absent", "suspend").status_code == 404
    assert act(stage, "ten_absent", "resume").status_code == 404
