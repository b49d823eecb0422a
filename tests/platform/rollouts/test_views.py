"""Rollouts over HTTP: started, looked at, moved by operators, and told to them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from penstock.auth.services import Scope
from penstock.db import Database
from penstock.jobs.models import Job
from penstock.registry.models import Hosting
from penstock.rollouts.documents import (
    CountedJobDocument,
    CountedJobPage,
    DecisionPage,
    PolicyDocument,
    RolloutDetail,
    RolloutDocument,
    RolloutPage,
    SimulationDocument,
)
from penstock.rollouts.evidence import Comparison, Evidence, OfflineFigures
from penstock.rollouts.lead import Lead, take
from penstock.rollouts.models import GatePoint, Rollout
from penstock.rollouts.policy import Policy
from penstock.rollouts.services import conclude
from penstock.rollouts.statistics import Sample, Tally
from penstock.webhooks.models import WebhookDelivery
from sqlalchemy import delete, select

from tests.factories import make_deployment, make_worker
from tests.platform.api.conftest import Caller, app, caller, make_caller

__all__ = ["app", "caller", "make_caller"]  # fixtures
START = {"model": "tiny", "version": "2"}
CANARY_ONLY = {"offline": None, "shadow": None}
ONE_STEP = {"canary": {"steps": [{"share": 0.5, "error_margin": 0.2, "slow_margin": 0.2}]}}
OFFLINE = Evidence(offline=OfflineFigures(8, 50_000, Comparison(0.001, 0.995, 0.001, 0.01)))
SEEN = Evidence(
    seconds=60.0,
    step_units=5,
    units=Tally().plus(0.01, 5, 500),
    failures=Tally().plus(0.01, 1, 5),
    pairs={"errors": Sample().plus(1.0, 0.0, 0.0, 0.0, 0.0)},
)
HARMED = Evidence(step_units=20, units=Tally().plus(0.01, 20, 1980), failures=Tally().plus(0.01, 9, 20))


@pytest.fixture(autouse=True)
def versions(database: Database) -> None:
    with database.transaction() as session:
        make_deployment(session)
        make_worker(session, make_deployment(session, version="2", champion=False))


@pytest.fixture
def lead(database: Database) -> Lead:
    with database.transaction() as session:
        taken = take(session, "rollouts", "test", 600)
    assert taken
    return taken


def started(caller: Caller, **body: Any) -> str:
    answer = caller.post("/v1/admin/rollouts", START | body)
    assert answer.status_code == 201, answer.text
    return str(answer.json["id"])


def judged(database: Database, lead: Lead, rollout_id: str, evidence: Evidence) -> None:
    with database.transaction() as session:
        assert conclude(session, lead, rollout_id, session.get_one(Rollout, rollout_id).fence, evidence)


def detail(caller: Caller, rollout_id: str) -> RolloutDetail:
    answer = caller.get(f"/v1/admin/rollouts/{rollout_id}")
    assert answer.status_code == 200, answer.text
    return RolloutDetail.model_validate_json(answer.text, strict=False)


def refused(answer: Any, status: int, code: str, field: str | None = None) -> str:
    assert (answer.status_code, answer.json["code"], answer.json.get("field")) == (status, code, field), answer.text
    return str(answer.json["detail"])


def test_a_start_answers_with_the_rollout_and_acts_once_by_its_key(caller: Caller) -> None:
    body = START | {"reason": "int4 at last", "policy": CANARY_ONLY}
    first = caller.post("/v1/admin/rollouts", body, Idempotency_Key="once")
    again = caller.post("/v1/admin/rollouts", body, Idempotency_Key="once")
    assert (first.status_code, again.status_code) == (201, 201)
    document = RolloutDocument.model_validate_json(first.text)
    assert (document.candidate.version, document.champion.version) == ("2", "1")
    assert (document.status, document.step, document.share, document.finished_at) == ("canary", 0, 0.01, None)
    assert again.json == first.json
    assert again.headers["Idempotent-Replayed"] == "true"
    assert "Idempotent-Replayed" not in first.headers
    assert caller.get(first.headers["Location"]).json["id"] == document.id

    other = caller.post("/v1/admin/rollouts", body | {"version": "1"}, Idempotency_Key="once")
    refused(other, 422, "idempotency_key_reused", "Idempotency-Key")
    assert "under way" in refused(caller.post("/v1/admin/rollouts", body), 409, "already_exists", "model")
    (entry,) = caller.get("/v1/audit?action=rollout.started").json["data"]
    assert entry["target"] == document.id
    assert entry["details"]["reason"] == "int4 at last"
    (decision,) = caller.get("/v1/admin/decisions").json["data"]
    assert (decision["move"], decision["reason"]) == ("start", "int4 at last")


@pytest.mark.parametrize(
    ("body", "status", "code", "field"),
    [
        ({"version": "7"}, 404, "model_not_found", "version"),
        ({"model": "huge"}, 404, "model_not_found", "model"),
        ({"policy": {"canary": {"unit": "planet"}}}, 422, "validation_failed", "policy.canary.unit"),
        ({"policy": {"offline": {"data": "file_x"}}}, 404, "not_found", "policy.offline.data"),
        ({"polices": {}}, 422, "validation_failed", "polices"),
    ],
)
def test_what_is_wrong_with_a_start_is_named(
    caller: Caller, body: dict[str, Any], status: int, code: str, field: str
) -> None:
    refused(caller.post("/v1/admin/rollouts", START | body), status, code, field)
    assert caller.get("/v1/admin/rollouts").json["data"] == []


def test_a_rollout_is_shown_with_its_course_and_what_its_gates_have_seen(
    caller: Caller, database: Database, lead: Lead
) -> None:
    rollout_id = started(caller, policy={"shadow": None})
    judged(database, lead, rollout_id, OFFLINE)
    judged(database, lead, rollout_id, SEEN)

    shown = detail(caller, rollout_id)
    places = [(place.title, place.progress) for place in shown.course[:4]]
    assert places == [
        ("registered", "passed"),
        ("offline", "passed"),
        ("canary step 1", "here"),
        ("canary step 2", "ahead"),
    ]
    assert shown.course[1].left_at == shown.course[2].entered_at
    assert shown.course[1].left_at is not None
    assert shown.course[2].left_at is None
    assert shown.policy == Policy(shadow=None)
    assert [decision.move for decision in shown.decisions] == ["start", "promote"]

    offline, canary = shown.gates
    assert (offline.judgement.verdict, offline.evidence.offline and offline.evidence.offline["tokens"]) == (
        "promote",
        50_000,
    )
    assert canary.judgement.verdict == "hold"
    arms = canary.evidence.arms
    assert (arms["candidate"].units, arms["champion"].units) == (5, 500)
    failures = arms["champion"].failures
    assert (failures.count, failures.rate) == (5, 0.01)
    assert failures.low is not None
    assert failures.high is not None
    assert 0 < failures.low < 0.01 < failures.high < 0.1
    assert canary.evidence.sample_ratio.planned == pytest.approx(0.01)
    assert canary.evidence.sample_ratio.seen == pytest.approx(5 / 505)
    errors = next(reason for reason in canary.judgement.reasons if reason.name == "errors")
    assert errors.jobs_needed
    assert {"low", "high", "margin", "log_evidence", "threshold"} <= set(errors.figures)


def test_the_history_of_a_gate_keeps_what_changed_and_the_end(caller: Caller, database: Database, lead: Lead) -> None:
    rollout_id = started(caller, policy=CANARY_ONLY)
    for _ in range(3):
        judged(database, lead, rollout_id, SEEN)  # within a second, and the same
    (gate,) = detail(caller, rollout_id).gates
    (first,) = gate.history
    assert first.verdict == "hold"
    assert first.guards["errors"]["margin"] == 0.25

    def later(seconds: int) -> None:
        with database.transaction() as session:
            for point in session.scalars(select(GatePoint)):
                session.delete(point)
                session.flush()
                kept = {name: getattr(point, name) for name in GatePoint.__table__.columns.keys()}  # noqa: SIM118
                session.add(GatePoint(**kept | {"at": point.at.replace(year=point.at.year - 1)}))

    later(1)
    judged(database, lead, rollout_id, SEEN)
    assert len(detail(caller, rollout_id).gates[0].history) == 1, "nothing has changed"
    judged(database, lead, rollout_id, HARMED)
    (gate,) = detail(caller, rollout_id).gates
    assert [point.verdict for point in gate.history] == ["hold", "rollback"]


def test_whoever_looks_again_gets_nothing_while_nothing_has_changed(caller: Caller) -> None:
    rollout_id = started(caller)
    path = f"/v1/admin/rollouts/{rollout_id}"
    tag = caller.get(path).headers["ETag"]
    unchanged = caller.get(path, If_None_Match=tag)
    assert (unchanged.status_code, unchanged.data) == (304, b"")
    caller.post(f"{path}/pause", {"reason": "lunch"})
    assert caller.get(path, If_None_Match=tag).status_code == 200


def test_operators_move_a_rollout_with_a_reason(caller: Caller) -> None:
    rollout_id = started(caller, policy=CANARY_ONLY | ONE_STEP)
    path = f"/v1/admin/rollouts/{rollout_id}"
    refused(caller.post(f"{path}/pause", {}), 422, "validation_failed", "reason")
    assert caller.post(f"{path}/pause", {"reason": "lunch"}).json["status"] == "paused"
    assert detail(caller, rollout_id).course[1].progress == "here"
    refused(caller.post(f"{path}/pause", {"reason": "more lunch"}), 409, "rollout_move_refused")
    resumed = caller.post(f"{path}/resume", {"reason": "back"}).json
    assert (resumed["status"], resumed["share"]) == ("canary", 0.5)
    promoted = caller.post(f"{path}/promote", {"reason": "I know it"}).json
    assert (promoted["status"], promoted["finished_at"] is not None) == ("promoted", True)
    assert caller.post(f"{path}/rollback", {"reason": "I did not"}).json["status"] == "rolled_back"
    assert refused(caller.post("/v1/admin/rollouts/rol_x/abort", {"reason": "x"}), 404, "not_found", "id")

    entries = caller.get(f"/v1/audit?target={rollout_id}").json["data"]
    assert [(entry["action"], entry["details"]["reason"]) for entry in entries] == [
        ("rollout.rolled_back", "I did not"),
        ("rollout.promoted", "I know it"),
        ("rollout.resumed", "back"),
        ("rollout.paused", "lunch"),
        ("rollout.started", None),
    ]
    page = DecisionPage.model_validate_json(caller.get(f"{path}/decisions?limit=2").text)
    assert [(each.number, each.move) for each in page.data] == [(5, "rollback"), (4, "promote")]
    assert page.next
    rest = caller.get(f"/v1/admin/decisions?rollout={rollout_id}&after={page.next}").json
    assert [each["number"] for each in rest["data"]] == [3, 2, 1]


def test_a_candidate_that_no_worker_has_ready_gets_nothing_and_the_rollout_says_so(
    caller: Caller, database: Database
) -> None:
    with database.transaction() as session:
        session.execute(delete(Hosting))
    shown = detail(caller, started(caller, policy=CANARY_ONLY))
    assert (shown.status, shown.share) == ("canary", 0.0)
    assert "no live worker has the candidate ready" in (shown.note or "")


def test_lists_are_filtered_and_paged(caller: Caller, database: Database) -> None:
    first = started(caller)
    caller.post(f"/v1/admin/rollouts/{first}/abort", {"reason": "the wrong file"})
    second = started(caller)
    page = RolloutPage.model_validate_json(caller.get("/v1/admin/rollouts?limit=1").text)
    assert ([each.id for each in page.data], page.has_more) == ([second], True)
    assert [each["id"] for each in caller.get(f"/v1/admin/rollouts?after={page.next}").json["data"]] == [first]
    assert [each["id"] for each in caller.get("/v1/admin/rollouts?status=aborted").json["data"]] == [first]
    assert caller.get("/v1/admin/rollouts?model=other").json["data"] == []


def test_a_models_own_policy_is_what_its_rollouts_go_by(caller: Caller) -> None:
    path = "/v1/admin/models/tiny/policy"
    default = PolicyDocument.model_validate_json(caller.get(path).text)
    assert (default.number, default.policy, default.actor) == (0, Policy(), None)
    own = CANARY_ONLY | {"keep_warm": "2d"}
    first = caller.call("PUT", path, {"policy": own, "reason": "ours"})
    assert (first.status_code, first.json["number"], first.json["policy"]["keep_warm"]) == (200, 1, 172_800)
    assert caller.call("PUT", path, {"policy": own}).json == first.json, "the same again changes nothing"
    assert caller.call("PUT", path, {"policy": own | {"keep_warm": "1d"}}).json["number"] == 2
    assert caller.get(path).json["policy"]["keep_warm"] == 86_400
    assert detail(caller, started(caller)).policy == Policy(offline=None, shadow=None)
    refused(caller.call("PUT", "/v1/admin/models/huge/policy", {"policy": {}}), 404, "model_not_found", "model")
    refused(caller.call("PUT", path, {"policy": {"keep_warm": "soon"}}), 422, "validation_failed", "policy.keep_warm")
    assert len(caller.get("/v1/audit?action=rollout_policy.set").json["data"]) == 2


def test_a_rehearsal_says_what_a_policy_costs(caller: Caller) -> None:
    body = {"policy": CANARY_ONLY | ONE_STEP | {"latency": None}, "effect": {"errors": 20}, "jobs": 2000, "runs": 20}
    told = SimulationDocument.model_validate_json(caller.post("/v1/admin/rollouts/simulate", body).text)
    assert told.harmless.passed.rate >= 0.9
    assert told.harmful.rolled_back.rate == 1
    assert told.harmful.rolled_back.served_median
    assert 2 < told.harmful.rolled_back.served_median < 200
    assert caller.post("/v1/admin/rollouts/simulate", body).json == told.model_dump(mode="json")
    refused(
        caller.post("/v1/admin/rollouts/simulate", body | {"runs": 2000, "jobs": 20_000}),
        422,
        "validation_failed",
        "runs",
    )


def test_operators_are_told_of_every_move_and_nobody_else_is(
    caller: Caller, make_caller: Callable[..., Caller], database: Database, lead: Lead
) -> None:
    stranger = make_caller((Scope.ADMIN,))
    hook = {"url": "http://127.0.0.1:9/hook", "events": ["rollout.verdict", "rollout.rolled_back"]}
    endpoint_id = caller.post("/v1/webhook-endpoints", hook).json["id"]
    assert "operator" in refused(stranger.post("/v1/webhook-endpoints", hook), 403, "forbidden", "events")
    admin = caller.post("/v1/keys", {"name": "an admin of the tenant", "scopes": ["admin"]}).json["key"]
    path = f"/v1/webhook-endpoints/{endpoint_id}"
    champions = {"url": hook["url"], "events": ["model.champion_moved"]}
    refused(stranger.post("/v1/webhook-endpoints", champions), 403, "forbidden", "events")
    elsewhere = replace(caller, key=admin).call("PATCH", path, {"url": "http://127.0.0.1:9/theirs"})
    refused(elsewhere, 403, "forbidden", "events")
    rollout_id = started(caller, policy=CANARY_ONLY)
    judged(database, lead, rollout_id, HARMED)

    told = caller.get("/v1/events").json["data"]
    assert [event["type"] for event in told] == ["rollout.started", "rollout.verdict", "rollout.rolled_back"]
    verdict = told[1]["data"]
    assert (verdict["id"], verdict["model"], verdict["candidate"]["version"]) == (rollout_id, "tiny", "2")
    assert verdict["status"] == "rolled_back"
    assert verdict["decision"]["judgement"]["reasons"][0]["name"] == "errors"
    assert stranger.get("/v1/events").json["data"] == []
    with database.transaction() as session:
        deliveries = session.scalars(select(WebhookDelivery).order_by(WebhookDelivery.id)).all()
        assert [(each.endpoint_id, each.payload["type"]) for each in deliveries] == [
            (endpoint_id, "rollout.verdict"),
            (endpoint_id, "rollout.rolled_back"),
        ]
        assert deliveries[0].payload["data"] == verdict


def test_every_job_that_a_decision_rests_on_is_listed(
    caller: Caller, make_caller: Callable[..., Caller], database: Database, lead: Lead
) -> None:
    rollout_id = started(caller, policy=CANARY_ONLY | ONE_STEP)
    path = f"/v1/admin/rollouts/{rollout_id}/jobs"
    jobs = [caller.submit() for _ in range(12)]
    tried = [row["job_id"] for row in caller.get(f"{path}?arm=candidate").json["data"]]
    assert 0 < len(tried) < 12
    with database.transaction() as session:
        failed = session.get_one(Job, tried[0])
        failed.state, failed.finished_at, failed.error = "failed", failed.created_at, {"code": "x", "message": "y"}
    judged(database, lead, rollout_id, HARMED)

    every = [CountedJobDocument.model_validate(row) for row in caller.get(f"{path}?limit=100").json["data"]]
    assert [each.job_id for each in every] == sorted(jobs, reverse=True)
    assert {each.job_id for each in every if each.arm == "candidate"} == set(tried)
    (row,) = caller.get(f"{path}?status=failed&arm=candidate").json["data"]
    assert (row["job_id"], row["error"], row["version"], row["rerouted"]) == (tried[0], "x", "2", False)
    assert (row["tenant_id"], row["stage"], row["step"]) == (caller.tenant_id, "canary", 0)
    pages, after = [], [""]
    while after:
        page = CountedJobPage.model_validate(caller.get(f"{path}?rerouted=true&limit=1{after.pop()}").json)
        pages += [(each.job_id, each.version, each.status) for each in page.data]
        after += [f"&after={page.next}"] if page.next else []
    assert pages == [(job_id, "1", "queued") for job_id in sorted(tried[1:], reverse=True)]
    refused(caller.get("/v1/admin/rollouts/rol_none/jobs"), 404, "not_found", "id")
    refused(make_caller((Scope.ADMIN,)).get(path), 403, "forbidden", None)


def test_one_that_waited_for_a_promotion_which_was_taken_back_is_listed_too(caller: Caller) -> None:
    rollout_id = started(caller, policy=CANARY_ONLY | ONE_STEP)
    reason = {"reason": "it is good"}
    assert caller.post(f"/v1/admin/rollouts/{rollout_id}/promote", reason).json["status"] == "promoted"
    job_id = caller.submit()
    caller.post(f"/v1/admin/rollouts/{rollout_id}/rollback", {"reason": "it is not"})
    (row,) = caller.get(f"/v1/admin/rollouts/{rollout_id}/jobs?rerouted=true").json["data"]
    assert (row["job_id"], row["arm"], row["version"], row["rerouted"]) == (job_id, None, "1", True)
    assert caller.get(f"/v1/admin/rollouts/{rollout_id}/jobs").json["data"] == []
