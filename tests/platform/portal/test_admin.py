"""The operators' pages without a browser: who may see them, what they say, and what their buttons do."""

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from flask import Flask
from penstock.auth.audit import Actor, ActorKind
from penstock.auth.models import AuditEntry, Tenant, User
from penstock.auth.services import Role
from penstock.bulk.models import BulkOperation
from penstock.dashboard.charts import CHARTS, RANGES
from penstock.dead_letters.models import DeadLetter
from penstock.deployments.models import Placement
from penstock.jobs.models import Job
from penstock.registry.models import Worker
from penstock.rollouts.models import Rollout
from sqlalchemy import func, select, update

from tests.platform.portal.conftest import Person
from tests.platform.portal.scene import Scene, set_scene


@pytest.fixture
def operator(make_person: Callable[..., Person]) -> Person:
    person = make_person()
    with person.database.transaction() as session:
        session.execute(update(User).values(role=Role.OPERATOR))
    return person


@pytest.fixture
def scene(operator: Person) -> Scene:
    with operator.database.transaction() as session:
        user = session.scalars(select(User)).one()
        actor = Actor(ActorKind.USER, user.id, user.email, None, scopes=())
        return set_scene(session, session.get_one(Tenant, operator.tenant_id), actor)


def pages(app: Flask) -> list[str]:
    """Every page of the dashboard that takes no argument."""
    return [
        rule.rule
        for rule in app.url_map.iter_rules()
        if rule.rule.startswith("/admin") and "GET" in (rule.methods or ()) and not rule.arguments
    ]


def said(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


def test_operators_alone_see_the_dashboard(app: Flask, make_person: Callable[..., Person]) -> None:
    stranger = make_person("out@example.com", signed_in=False)
    assert stranger.get("/admin/").headers["Location"] == "/sign-in?next=/admin/"
    for role in (Role.MEMBER, Role.ADMIN):
        person = make_person(f"{role}@example.com")
        with person.database.transaction() as session:
            session.execute(update(User).where(User.email == person.email).values(role=role))
        for rule in app.url_map.iter_rules():
            if not rule.rule.startswith("/admin"):
                continue
            converted = {name: 0 if name == "step" else "absent" for name in rule.arguments}
            path = rule.build(converted)
            assert path is not None
            method = person.get if "GET" in (rule.methods or ()) else person.post
            assert method(path[1]).status_code == 403, path
        assert "Operate" not in person.get("/jobs").text


def test_every_page_renders_empty_and_full(app: Flask, operator: Person) -> None:
    paths = pages(app)
    assert len(paths) >= 10
    for path in paths:
        assert operator.get(path).status_code == 200, path
    with operator.database.transaction() as session:
        user = session.scalars(select(User)).one()
        tenant = session.get_one(Tenant, operator.tenant_id)
        set_scene(session, tenant, Actor(ActorKind.USER, user.id, user.email, None, scopes=()))
    for path in paths:
        assert operator.get(path).status_code == 200, path


def test_what_tenants_and_models_wrote_is_escaped(operator: Person, scene: Scene) -> None:
    evil = "<img src=x onerror=alert(1)>"
    with operator.database.transaction() as session:
        session.execute(update(Tenant).values(name=evil))
        session.execute(update(DeadLetter).values(message=evil))
        session.execute(update(Job).values(input={"prompt": evil}))
        session.execute(update(Worker).values(hostname=evil))
        letter = session.scalars(select(DeadLetter.id)).first()
    for path in (
        "/admin/workers", "/admin/tenants", f"/admin/tenants/{operator.tenant_id}", "/admin/dead-letters",
        f"/admin/dead-letters/{letter}", f"/admin/rollouts/{scene.rollout_id}/flips", "/admin/audit", "/admin/health",
    ):  # fmt: skip
        page = operator.get(path)
        assert page.status_code == 200, path
        assert evil not in page.text, path
    assert "&lt;img src=x" in operator.get(f"/admin/rollouts/{scene.rollout_id}/flips").text


def test_the_overview_tells_of_now_and_its_charts_of_an_hour(operator: Person, scene: Scene) -> None:
    page = said(operator.get("/admin/").text)
    assert "Dead letters 3" in page
    assert "Waiting 1" in page
    for name in CHARTS:
        told = operator.get(f"/admin/charts/{name}").get_json()
        assert len(told["at"]) == 60, name
        assert any(value for line in told["lines"] for value in line["values"]), name
        assert all(len(line["values"]) == 60 for line in told["lines"]), name
    for length in RANGES:
        assert operator.get(f"/admin/charts/jobs?range={length}").status_code == 200
    assert operator.get("/admin/charts/none").status_code == 404


def test_a_worker_is_drained_once_and_the_record_says_by_whom(operator: Person, scene: Scene) -> None:
    page = said(operator.get("/admin/workers").text)
    assert "gpu-7" in page
    assert "51.0 GiB 15.0 GiB of weights, 80 % of K and V" in page
    for _ in range(2):
        assert operator.post(f"/admin/workers/{scene.worker_id}/drain").status_code == 303
    with operator.database.transaction() as session:
        assert session.get_one(Worker, scene.worker_id).drain_requested_at is not None
        drained = select(func.count()).where(AuditEntry.action == "worker.drain_requested")
        assert session.scalar(drained) == 1
    assert "takes no more jobs, and ends" in operator.get("/admin/workers").text
    assert operator.post("/admin/workers/wrk_none/drain").status_code == 303
    assert "it may have ended" in operator.get("/admin/workers").text.replace("&#39;", "'")


def test_a_page_that_is_open_gets_its_parts_when_they_change(operator: Person, scene: Scene) -> None:
    page = operator.get("/admin/health").text
    address = re.search(r'hx-get="(/admin/health/parts\?seen=\w+)"', page)
    assert address is not None
    assert operator.get(address[1]).status_code in (200, 204)
    rollout = operator.get(f"/admin/rollouts/{scene.rollout_id}").text
    live = re.search(r'hx-get="(/admin/rollouts/\w+/parts\?seen=\w+)"', rollout)
    assert live is not None
    assert operator.get(live[1]).status_code == 204
    operator.post(f"/admin/rollouts/{scene.rollout_id}/pause", {"reason": "lunch"})
    changed = operator.get(live[1])
    assert changed.status_code == 200
    assert "lunch" in changed.text


def test_a_rollout_is_moved_with_a_reason_and_refusals_are_told(operator: Person, scene: Scene) -> None:
    here = f"/admin/rollouts/{scene.rollout_id}"
    assert "Canary step 1" in operator.get(here).text
    assert operator.post(f"{here}/resume", {"reason": "by mistake"}).status_code == 303
    assert "toast bad" in operator.get(here).text
    operator.post(f"{here}/rollback", {"reason": "the accountants said so"})
    with operator.database.transaction() as session:
        assert session.get_one(Rollout, scene.rollout_id).state == "rolled_back"
    page = operator.get(here).text
    assert "the accountants said so" in page
    assert "data-opens" not in page
    assert operator.post(f"{here}/explode").status_code == 404
    assert operator.get("/admin/rollouts/rol_none").status_code == 404


def test_a_rollout_is_started_from_a_form_by_the_apis_own_checks(operator: Person, scene: Scene) -> None:
    page = operator.get("/admin/rollouts/new").text
    assert "No version may begin one now" in said(page)  # the model's rollout is under way
    operator.post(f"/admin/rollouts/{scene.rollout_id}/abort", {"reason": "to begin anew"})
    assert f'href="/admin/rollouts/new?candidate={scene.model}:2"' in operator.get(f"/admin/models/{scene.model}").text
    page = operator.get(f"/admin/rollouts/new?candidate={scene.model}:2").text
    assert f'<option value="{scene.model}:2" selected>' in page
    assert f'<option value="{scene.model}:1"' not in page

    asked = {"candidate": f"{scene.model}:2", "policy": "offline: null", "reason": "it is smaller"}
    wrong = {
        "policy": {"policy": "canary: {steps: []}", "which": "written"}, "reason": {"reason": " "},
        "candidate": {"candidate": "none:7"},
    }  # fmt: skip
    for field, changed in wrong.items():
        refused = operator.post("/admin/rollouts/new", asked | changed)
        assert refused.status_code == 422, field
        assert re.findall(r'class="error" id="(\w+)-error"', refused.text) == [field]
    begun = operator.post("/admin/rollouts/new", asked)
    assert begun.status_code == 303
    rollout_id = begun.headers["Location"].rpartition("/")[2]
    with operator.database.transaction() as session:
        rollout = session.get_one(Rollout, rollout_id)
        assert (rollout.state, rollout.policy["offline"]) == ("shadow", None)
        entry = session.scalars(select(AuditEntry).where(AuditEntry.target == rollout_id)).one()
        assert (entry.action, entry.actor_name, entry.details["reason"]) == (
            "rollout.started", operator.email, "it is smaller",
        )  # fmt: skip
    again = operator.post("/admin/rollouts/new", asked)
    assert again.status_code == 422
    assert "is under way" in said(again.text)


def test_a_rollout_begins_by_the_policy_that_was_chosen(operator: Person, scene: Scene) -> None:
    operator.post(f"/admin/rollouts/{scene.rollout_id}/abort", {"reason": "to begin anew"})
    candidate = f"{scene.model}:2"
    part = f"/admin/rollouts/new/policy?candidate={candidate}"
    assert "no policy of its own" in said(operator.get(f"{part}&which=own").text)
    operator.post(f"/admin/policies/{scene.model}", {"policy": "offline: null\nkeep_warm: 3d", "reason": "no data"})
    assert "number 1" in said(operator.get(f"{part}&which=own").text)
    text = operator.get(f"{part}&which=written").text
    assert "<textarea" in text
    assert "keep_warm: 3d" in text  # one begins with the model's own
    for which, offline, warm in (("default", True, 86400), ("own", False, 3 * 86400)):
        asked = {"candidate": candidate, "which": which, "policy": "not: [read", "reason": "it is smaller"}
        begun = operator.post("/admin/rollouts/new", asked)
        assert begun.status_code == 303, which
        rollout_id = begun.headers["Location"].rpartition("/")[2]
        with operator.database.transaction() as session:
            policy = session.get_one(Rollout, rollout_id).policy
            assert (policy["offline"] is not None, policy["keep_warm"]) == (offline, warm)
        operator.post(f"/admin/rollouts/{rollout_id}/abort", {"reason": "enough"})


def test_a_models_policies_are_kept_by_number_with_what_they_changed(operator: Person, scene: Scene) -> None:
    here = f"/admin/policies/{scene.model}"
    page = operator.get(here)
    assert "the default policy" in said(page.text)
    assert "alphas: {rollback: 0.05" in page.text
    refused = operator.post(here, {"policy": "shadow: {sampling: 3}", "reason": "more"})
    assert refused.status_code == 422
    assert "shadow.sampling: is too large" in said(refused.text)
    assert "shadow: {sampling: 3}" in refused.text  # nothing written is lost
    assert operator.post(here, {"policy": "", "reason": "more"}).status_code == 422
    for text, reason in (("shadow: {sampling: 0.2}", "more of it"), ("shadow: {sampling: 0.3}", "still more")):
        assert operator.post(here, {"policy": text, "reason": reason}).status_code == 303
    page = said(operator.get(here).text)
    assert "policy number 2" in page
    assert "shadow.sampling 0.2 → 0.3" in page
    assert "still more" in page
    older = operator.get(f"{here}?number=1").text
    assert "Number 1 is an older one" in said(older)
    assert "sampling: 0.2" in older
    assert operator.get(f"{here}?number=9").status_code == 404
    assert operator.get("/admin/policies/none").status_code == 404
    assert "number 2" in said(operator.get("/admin/policies").text)
    with operator.database.transaction() as session:
        entries = session.scalars(select(AuditEntry).where(AuditEntry.target == scene.model)).all()
    assert [entry.details["number"] for entry in entries] == [1, 2]


def test_a_policys_text_is_checked_while_it_is_written(operator: Person, scene: Scene) -> None:
    here = "/admin/policies/check"
    told = operator.post(here, {"policy": "errors: {}\nshadow:\n  sampling: 3\n  colour: red\n"}).text
    assert "2 mistakes" in said(told)
    assert 'data-goes-to-line="3"' in told
    assert 'data-goes-to-line="4"' in told
    assert "1 mistake" in said(operator.post(here, {"policy": "a: ["}).text)
    told = operator.post(here, {"policy": "offline: null\nkeep_warm: 3d"}).text
    assert "keep_warm 24h → 3d" in said(told)
    assert "1 % of its jobs" in said(told)
    assert 'hx-trigger="load delay' in told  # there is more of it to come


def test_a_rollouts_page_has_its_policy_and_what_that_costs(
    operator: Person, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.rollouts.costs.PIECES", 1)
    here = f"/admin/rollouts/{scene.rollout_id}"
    page = operator.get(here).text
    assert f'hx-get="{here}/cost"' in page
    assert "offline: null" in page
    looks = [said(operator.get(f"{here}/cost").text) for _ in range(5)]  # each of which makes a piece at least
    assert "a version that is as good passes after some" in looks[-1]
    assert operator.get("/admin/rollouts/rol_none/cost").status_code == 404


def test_a_guardrails_chart_has_its_interval_and_margin_in_points_over_jobs(operator: Person, scene: Scene) -> None:
    here = f"/admin/rollouts/{scene.rollout_id}"
    told = operator.get(f"{here}/charts/canary/0/errors").get_json()
    lines = {line["label"]: line["values"] for line in told["lines"]}
    assert (told["form"], told["unit"], told["across"]) == ("band", "points", "pairs of jobs")
    assert told["at"] == sorted(set(told["at"]))
    assert set(lines["Margin"]) == {25.0}
    widths = [high - low for low, high in zip(lines["At least"], lines["At most"], strict=True)]
    assert len(widths) == len(told["at"]) == 6
    assert widths == sorted(widths, reverse=True)
    for absent in ("canary/0/none", "canary/0/minimum", "ab/0/errors"):
        assert operator.get(f"{here}/charts/{absent}").status_code == 404, absent


def test_each_gate_that_was_judged_has_its_page(operator: Person, scene: Scene) -> None:
    here = f"/admin/rollouts/{scene.rollout_id}"
    page = operator.get(f"{here}/gates/canary/0").text
    assert f'href="{here}/gates/canary/0"' in page
    assert "points more often than the champion" in said(page)
    assert f'hx-get="{here}/gates/canary/0/parts?seen=' in page
    assert operator.get(f"{here}/gates/canary/1").status_code == 404


def test_reading_flips_is_written_down(operator: Person, scene: Scene) -> None:
    assert "Where they part" in operator.get(f"/admin/rollouts/{scene.rollout_id}/flips?order=newest").text
    with operator.database.transaction() as session:
        entry = session.scalars(select(AuditEntry).order_by(AuditEntry.id.desc())).first()
    assert entry is not None
    assert (entry.target, entry.actor_name) == (scene.rollout_id, operator.email)


def test_dead_letters_are_settled_alone_and_by_group(operator: Person, scene: Scene) -> None:
    with operator.database.transaction() as session:
        letter = session.scalars(select(DeadLetter).where(DeadLetter.job_id == scene.letter_job_id)).one()
    assert "hello there" not in operator.get(f"/admin/dead-letters/{letter.id}").text
    operator.post(f"/admin/dead-letters/{letter.id}/replay")
    with operator.database.transaction() as session:
        settled = session.get_one(DeadLetter, letter.id)
        assert settled.state == "replayed"
        assert session.get_one(Job, settled.replay_job_id).retry_of == scene.letter_job_id
    operator.post(f"/admin/dead-letters/{letter.id}/discard")
    assert "toast bad" in operator.get(f"/admin/dead-letters/{letter.id}").text
    group = {"reason": "forward_failed", "model": scene.model, "version": "1"}
    operator.post("/admin/dead-letters/groups/discard", group)
    with operator.database.transaction() as session:
        operation = session.scalars(select(BulkOperation)).one()
    assert (operation.action, operation.filter) == ("discard_dead_letters", group)


def test_limits_are_changed_by_the_apis_own_checks(operator: Person, scene: Scene) -> None:
    here = f"/admin/tenants/{operator.tenant_id}"
    refused = operator.post(here, {"weight": "-1", "max_queued_jobs": "many"})
    assert refused.status_code == 422
    assert refused.text.count('class="error"') == 2
    assert operator.post(here, {"weight": "2.5", "max_queued_jobs": "40"}).status_code == 303
    with operator.database.transaction() as session:
        tenant = session.get_one(Tenant, operator.tenant_id)
    assert (tenant.weight, tenant.max_queued_jobs, tenant.tokens_per_minute) == (2.5, 40, None)


def test_a_tenant_is_shut_out_and_let_in_but_not_ones_own(
    operator: Person, scene: Scene, make_person: Callable[..., Person]
) -> None:
    other = replace(make_person("guest@example.com"), email="guest@example.com")
    operator.post(f"/admin/tenants/{other.tenant_id}/suspend")
    assert other.get("/jobs").status_code == 302
    assert "Suspended" in operator.get("/admin/tenants").text
    operator.post(f"/admin/tenants/{other.tenant_id}/resume")
    assert other.get("/jobs").status_code == 200
    operator.post(f"/admin/tenants/{operator.tenant_id}/suspend")
    assert "toast bad" in operator.get(f"/admin/tenants/{operator.tenant_id}").text


def test_the_record_is_filtered_by_its_address(operator: Person, scene: Scene) -> None:
    operator.post(f"/admin/workers/{scene.worker_id}/drain")
    operator.post(f"/admin/tenants/{operator.tenant_id}", {"weight": "3"})
    page = operator.get("/admin/audit?action=worker.drain_requested").text
    assert page.count("<code>worker.drain_requested</code>") == 1
    assert "<code>tenant.changed</code>" not in page
    assert "Nothing like that was done" in operator.get("/admin/audit?target=none").text


def test_writes_need_the_forms_token(operator: Person, scene: Scene) -> None:
    answer = operator.client.post(f"/admin/workers/{scene.worker_id}/drain", headers={"Accept": "text/html"})
    assert answer.status_code == 400
    with operator.database.transaction() as session:
        assert session.get_one(Worker, scene.worker_id).drain_requested_at is None


def test_a_models_page_shows_lineage_quality_and_gates(operator: Person, scene: Scene) -> None:
    page = operator.get(f"/admin/models/{scene.model}").text
    assert "29% of the bytes, mean KLD 0.0041" in page
    assert "int4 by gptq" in said(page)
    assert f'href="/admin/rollouts/{scene.rollout_id}"' in page
    assert operator.get("/admin/models/none").status_code == 404


def test_a_version_is_placed_from_a_form_by_the_apis_own_checks(operator: Person, scene: Scene) -> None:
    here = f"/admin/models/{scene.model}/versions/2"
    for page in ("/admin/workers", f"/admin/models/{scene.model}"):
        assert f'href="{here}"' in operator.get(page).text
    shown = said(operator.get(here).text)
    assert "Wanted on all workers, warm" in shown
    assert "gpu-7 cuda:0 H200 Ready 20 % 13.4 GiB" in shown

    wrong = {
        "workers": "no such name!,x" * 200,
        "replicas": "few",
        "kv_share": "1.5",
        "mode": "hot",
        "idle_seconds": "0",
    }
    refused = operator.post(here, wrong)
    assert refused.status_code == 422
    assert set(re.findall(r'class="error" id="(\w+)-error"', refused.text)) == set(wrong)
    assert 'value="few"' in refused.text

    asked = {"workers": "gpu-9, east", "replicas": "2", "kv_share": "0.25", "mode": "cold", "idle_seconds": "60"}
    assert operator.post(here, asked).status_code == 303
    placed = operator.get(here).text
    assert "Wanted on 2 of gpu-9 or east, cold, 25% of K and V" in said(placed)
    assert "No live worker has the name or label gpu-9 or east" in said(placed)
    assert all(f'value="{asked[name]}"' in placed for name in ("workers", "replicas", "kv_share", "idle_seconds"))
    with operator.database.transaction() as session:
        entry = session.scalars(select(AuditEntry).where(AuditEntry.action == "deployment.placed")).one()
        wish = session.get_one(Placement, entry.target)
    assert (entry.actor_name, entry.details["version"], entry.details["replicas"]) == (operator.email, "2", 2)
    assert (wish.workers, wish.kv_share, wish.mode, wish.idle_seconds) == (["gpu-9", "east"], 0.25, "cold", 60.0)

    operator.post(here, {"workers": "", "replicas": "", "kv_share": "", "mode": "warm", "idle_seconds": ""})
    assert "Wanted on all workers, warm" in said(operator.get(here).text)
    assert operator.get(f"/admin/models/{scene.model}/versions/7").status_code == 404
    assert operator.post(f"/admin/models/{scene.model}/versions/7", {"mode": "warm"}).status_code == 404
