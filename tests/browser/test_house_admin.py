"""What an operator does on every page, against the whole running platform: workers end, versions compete, jobs die.

The model's champion stays what it was: the rival is only ever tried, and is gone in the end.
"""

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from penstock.registry.folder import describe
from penstock.registry.mlflow_api import MlflowApi
from penstock.registry.registration import register
from penstock.settings import MlflowSettings
from playwright.sync_api import Locator, Page, expect

from tests.browser.conftest import OPERATOR, ROOT, SCREENS, RunningPlatform, Tab
from tests.browser.rival import DEAF_TO, rival_of
from tests.browser.test_pages import violations

OpenTab = Callable[..., Tab]
MODEL = "invoice-extractor"
PATIENCE_SECONDS = 120.0
PATIENCE = PATIENCE_SECONDS * 1000
SHADOW = "offline: null\nshadow: {sampling: 1.0}"
CANARY = '{"offline": null, "shadow": null}'


@pytest.fixture(scope="module")
def program(platform: RunningPlatform) -> Iterator[httpx.Client]:
    """The first tenant's program, which runs the installation, too."""
    key = {"Authorization": f"Bearer {platform.api_key}"}
    with httpx.Client(base_url=platform.url, headers=key, trust_env=False, timeout=60.0) as client:
        yield client


@pytest.fixture(scope="module")
def rival(platform: RunningPlatform, program: httpx.Client) -> Iterator[str]:
    """The number of a second version that the worker has ready beside the champion."""
    address = platform.settings.mlflow_tracking_uri
    assert address is not None
    folder = rival_of(ROOT / "examples/invoices/model", platform.state.parent / "rival")
    settings = MlflowSettings(mlflow_tracking_uri=address)
    version = register(settings, describe(folder), MODEL, alias="challenger").version
    until(lambda: any(each["ready_workers"] for each in deployments(program, version)))
    yield version
    with MlflowApi(settings) as mlflow:
        mlflow.ask("DELETE", "registered-models/alias", json={"name": MODEL, "alias": "challenger"})


def deployments(program: httpx.Client, version: str) -> list[dict[str, Any]]:
    found = program.get("/v1/admin/deployments").raise_for_status().json()["data"]
    return [each for each in found if (each["model_name"], each["model_version"]) == (MODEL, version)]


def until(holds: Callable[[], Any]) -> Any:
    """What it comes to once it is so."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := holds()):
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.2)
    return found


def run(program: httpx.Client, prompt: str, model: str = MODEL) -> dict[str, Any]:
    """A small job, after its end."""
    body = {"model": model, "input": {"prompt": prompt}, "params": {"max_tokens": 8, "ignore_eos": True}}
    job = program.post("/v1/jobs", json=body).raise_for_status().json()
    ended: dict[str, Any] = until(
        lambda: (found := program.get(f"/v1/jobs/{job['id']}").json())["finished_at"] and found
    )
    return ended


def enter(platform: RunningPlatform, open_tab: OpenTab, path: str) -> Tab:
    """A tab in which the operator has signed in, at `path`."""
    tab = open_tab(platform.url, reduced_motion="reduce")
    tab.open(path)
    tab.sign_in_to(f"**{path}", OPERATOR)
    return tab


def look_at(tab: Tab) -> None:
    """Fail unless axe finds nothing on the page as it stands, and it fits both screens without a complaint."""
    assert violations(tab) == [], tab.page.url
    for width, height in SCREENS.values():
        tab.page.set_viewport_size({"width": width, "height": height})
        tab.check()


def appears(tab: Tab, wanted: Locator) -> None:
    """Open the page anew until it has it."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while wanted.count() == 0:
        assert time.monotonic() < deadline, f"{wanted} is not at {tab.page.url}"
        tab.page.wait_for_timeout(1500)
        tab.page.reload()


def told(page: Page, text: str) -> None:
    expect(page.get_by_role("status").filter(has_text=text)).to_be_visible()


def act(page: Page, button: str, question: str, reason: str) -> None:
    """Answer the question that a button asks, with a reason."""
    page.get_by_role("button", name=button, exact=True).click()
    dialog = page.get_by_role("dialog", name=question)
    dialog.get_by_label("Reason").fill(reason)
    dialog.get_by_role("button", name=button, exact=True).click()
    expect(page.locator(".timeline")).to_contain_text(reason)


def recorded(program: httpx.Client, target: str) -> dict[str, str | None]:
    """What the record says was done to it, and with which reason."""
    entries = program.get("/v1/admin/audit", params={"target": target, "limit": 100}).raise_for_status().json()["data"]
    assert {entry["actor"]["name"] for entry in entries} == {OPERATOR}
    return {entry["action"]: entry["details"].get("reason") for entry in entries}


def test_a_worker_that_is_drained_is_followed_by_another(
    platform: RunningPlatform, program: httpx.Client, open_tab: OpenTab
) -> None:
    before = platform.worker_pid
    tab = enter(platform, open_tab, "/admin/workers")
    page = tab.page
    process = page.locator("dd", has_text=re.compile(rf"^{before}$"))
    expect(process).to_be_visible()
    look_at(tab)
    page.get_by_role("button", name="Drain").click()
    page.get_by_role("dialog").get_by_role("button", name="Drain").click()
    told(page, "takes no more jobs, and ends")
    expect(process).to_have_count(0)  # the page follows by itself
    after = until(lambda: (pid := platform.supervisor.processes.get("worker")) != before and pid)
    card = page.locator("section.card", has=page.locator("dd", has_text=re.compile(rf"^{after}$")))
    expect(card.locator("tbody tr")).to_contain_text(MODEL, timeout=PATIENCE_SECONDS * 1000)
    expect(card.locator("tbody .badge.ready")).to_have_count(1, timeout=PATIENCE_SECONDS * 1000)
    assert run(program, "Invoice")["status"] == "succeeded"
    tab.check()


def test_a_rollout_is_started_moved_and_taken_back(
    platform: RunningPlatform, program: httpx.Client, open_tab: OpenTab, rival: str
) -> None:
    tab = enter(platform, open_tab, f"/admin/models/{MODEL}")
    page = tab.page
    expect(page.get_by_role("row").filter(has_text="Challenger")).to_contain_text("ready on 1 worker")
    look_at(tab)
    page.get_by_role("link", name=f"Start a rollout of version {rival}").click()
    expect(page.get_by_label("Version")).to_have_value(f"{MODEL}:{rival}")
    expect(page.locator(".cost")).to_contain_text("is as good passes after some", timeout=PATIENCE)
    page.get_by_label("By which policy").select_option("written")
    policy = page.get_by_label("Policy", exact=True)
    expect(policy).to_have_value(re.compile("minimum_tokens: 10000"))  # in full, with every default
    policy.fill("shadow: null\ncanary: {steps: []}")
    told_mistakes = page.locator("#policy-told .mistakes")
    expect(told_mistakes).to_contain_text("canary.steps")
    look_at(tab)
    told_mistakes.get_by_role("button", name="Line 2").click()
    assert page.evaluate("getSelection().toString()") == "canary: {steps: []}"
    page.get_by_label("Reason").fill("it is smaller")
    tab.expected_statuses.add(422)
    page.get_by_role("button", name="Start it").click()
    expect(page.locator("#policy-error")).to_contain_text("canary.steps")
    look_at(tab)
    expect(policy).to_have_value("shadow: null\ncanary: {steps: []}")
    policy.fill(SHADOW)
    expect(page.locator("#policy-told")).to_contain_text("offline {")  # what it says otherwise than the default
    page.get_by_role("button", name="Start it").click()
    page.wait_for_url("**/admin/rollouts/rol_*")
    told(page, "The rollout has begun.")
    rollout_id = page.url.rpartition("/")[2]
    expect(page.locator("#course-title + .badge")).to_have_text("Shadow")
    expect(page.locator(".timeline")).to_contain_text("it is smaller")

    for number in range(2):
        assert run(program, f"Invoice {number}")["model_version"] == "1"
    page.get_by_role("link", name="Flips").click()
    appears(tab, page.locator("details.fold"))
    expect(page.locator("details.fold").first).to_contain_text("nats a token")
    expect(page.get_by_text(f"Candidate v{rival}").first).to_be_visible()
    look_at(tab)

    page.get_by_role("link", name="Stages").click()
    act(page, "Pause", "Pause the rollout?", "the auditors are here")
    expect(page.locator("#course-title + .badge")).to_have_text("Paused")
    act(page, "Resume", "Resume the rollout?", "they have left")
    act(page, "Promote", "Let it pass this gate?", "it was seen by hand")
    expect(page.locator("#course-title + .badge")).to_have_text("Canary")
    expect(page.locator("[aria-current=step]")).to_contain_text("1 % of jobs")
    look_at(tab)
    act(page, "Roll back", "Take the candidate back?", "customers asked for it")
    expect(page.locator("#course-title + .badge")).to_have_text("Rolled back")
    expect(page.get_by_role("button", name="Roll back")).to_have_count(0)
    assert recorded(program, rollout_id) == {
        "rollout.started": "it is smaller", "rollout.text_read": None, "rollout.paused": "the auditors are here",
        "rollout.resumed": "they have left", "rollout.promoted": "it was seen by hand",
        "rollout.rolled_back": "customers asked for it",
    }  # fmt: skip
    tab.check()


def test_a_version_is_placed_elsewhere_and_back(
    platform: RunningPlatform, program: httpx.Client, open_tab: OpenTab, rival: str
) -> None:
    (deployment,) = deployments(program, rival)
    here = f"/admin/models/{MODEL}/versions/{rival}"
    tab = enter(platform, open_tab, f"/admin/models/{MODEL}")
    page = tab.page
    page.get_by_role("link", name=f"Place version {rival}").click()
    page.wait_for_url(f"**{here}")
    hosts = page.get_by_role("region", name="Where it is").locator("tbody tr")
    expect(hosts).to_contain_text("Ready")
    page.get_by_label("Share of the memory").fill("2")
    tab.expected_statuses.add(422)
    page.get_by_role("button", name="Place it").click()
    expect(page.locator("#kv_share-error")).to_be_visible()
    look_at(tab)
    page.get_by_label("Share of the memory").fill("")
    page.get_by_label("On how many of them").fill("0")
    page.get_by_role("button", name="Place it").click()
    told(page, "Wanted on no worker")
    expect(page.get_by_text("No worker should have it")).to_be_visible()
    expect(hosts).to_contain_text("No worker has it", timeout=PATIENCE_SECONDS * 1000)  # the page follows by itself
    page.get_by_label("On how many of them").fill("")
    page.get_by_role("button", name="Place it").click()
    told(page, "Wanted on all workers, warm")
    expect(hosts).to_contain_text("Ready", timeout=PATIENCE_SECONDS * 1000)
    look_at(tab)
    assert set(recorded(program, deployment["id"])) == {"deployment.placed"}


def test_another_rollout_is_ended_without_a_verdict(
    platform: RunningPlatform, program: httpx.Client, open_tab: OpenTab, rival: str
) -> None:
    tab = enter(platform, open_tab, "/admin/rollouts")
    page = tab.page
    page.get_by_role("link", name="Policies").click()
    look_at(tab)
    page.get_by_role("link", name=MODEL).click()
    page.get_by_label("Policy", exact=True).fill(CANARY)
    page.get_by_label("Reason").fill("text is scarce")
    expect(page.locator(".cost:not([hx-trigger])")).to_contain_text("Fails 10 times as often", timeout=PATIENCE)
    look_at(tab)
    page.get_by_role("button", name="Save as number 1").click()
    told(page, "Number 1 holds from the next rollout on.")
    expect(page.get_by_role("region", name="Versions").get_by_role("row").nth(1)).to_contain_text("text is scarce")
    page.get_by_role("link", name="Rollouts").first.click()
    page.get_by_role("link", name="Start a rollout").click()
    page.get_by_label("Version").select_option(f"{MODEL}:{rival}")
    expect(page.locator("#policy-part")).to_contain_text("number 1")
    page.get_by_label("Reason").fill("once more")
    page.get_by_role("button", name="Start it").click()
    page.wait_for_url("**/admin/rollouts/rol_*")
    rollout_id = page.url.rpartition("/")[2]
    expect(page.locator(".course li").nth(1)).to_contain_text("Canary step 1")  # as the model's own policy has it
    expect(page.locator(".cost")).to_contain_text("as good passes after some", timeout=PATIENCE)
    act(page, "Abort", "End it without a verdict?", "it was a trial")
    expect(page.locator("#course-title + .badge")).to_have_text("Aborted")
    assert recorded(program, rollout_id) == {"rollout.started": "once more", "rollout.aborted": "it was a trial"}
    page.get_by_role("link", name="Rollouts").first.click()
    expect(page.get_by_role("row").nth(1)).to_contain_text("Aborted")
    look_at(tab)


def test_jobs_that_a_version_cannot_run_are_replayed_and_put_away(
    platform: RunningPlatform, program: httpx.Client, open_tab: OpenTab, rival: str
) -> None:
    dead = run(program, DEAF_TO, f"{MODEL}:{rival}")
    assert (dead["status"], dead["error"]["code"]) == ("failed", "logits_not_finite")
    tab = enter(platform, open_tab, "/admin/dead-letters")
    page = tab.page
    group = page.get_by_role("region", name="Open, by reason and version").get_by_role("row").nth(1)
    expect(group).to_contain_text(f"v{rival}")
    look_at(tab)
    page.locator("td a.mono").first.click()
    expect(page.locator("dl.facts")).to_contain_text(dead["id"])
    expect(page.get_by_role("region", name="Runs").get_by_role("row")).to_have_count(2)
    expect(page.get_by_text(DEAF_TO)).to_have_count(0)  # its text is its tenant's
    look_at(tab)
    page.get_by_role("button", name="Replay").click()
    told(page, "It runs again as job_")
    expect(page.locator(".title .badge")).to_have_text("Replayed")

    page.get_by_role("link", name="Dead letters").first.click()
    appears(tab, page.locator("td a.mono"))  # it has died again
    page.locator("td a.mono").first.click()
    expect(page.locator("dl.facts")).not_to_contain_text(dead["id"])
    page.get_by_role("link", name="Dead letters").first.click()
    group.get_by_role("button", name="Discard all").click()
    page.get_by_role("dialog").get_by_role("button", name="Discard all").click()
    told(page, "It is being done in the background")
    appears(tab, page.get_by_role("heading", name="No dead letters"))
    page.get_by_role("link", name="Discarded", exact=True).click()
    expect(page.locator("td a.mono")).to_have_count(1)
    tab.check()


def test_a_tenants_limits_are_set_and_it_is_shut_out_and_let_in(
    platform: RunningPlatform, program: httpx.Client, open_tab: OpenTab
) -> None:
    tenant = program.post("/v1/admin/tenants", json={"name": "Quay Street"}).raise_for_status().json()["id"]
    made = program.post(f"/v1/admin/tenants/{tenant}/keys", json={"name": "first", "scopes": ["jobs:read"]})
    theirs = {"Authorization": f"Bearer {made.raise_for_status().json()['key']}"}

    def answers(status: int) -> bool:
        return program.get("/v1/jobs", headers=theirs).status_code == status

    assert answers(200)
    tab = enter(platform, open_tab, "/admin/tenants")
    page = tab.page
    page.get_by_role("link", name="Quay Street").click()
    page.get_by_label("Weight").fill("-1")
    tab.expected_statuses.add(422)
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#weight-error")).to_be_visible()
    page.get_by_label("Weight").fill("2.5")
    page.get_by_label("Requests a minute").fill("1")
    page.get_by_role("button", name="Save").click()
    told(page, "The limits hold within two seconds.")
    expect(page.get_by_label("Weight")).to_have_value("2.5")
    until(lambda: answers(429))
    page.get_by_label("Requests a minute").fill("")
    page.get_by_role("button", name="Save").click()
    until(lambda: answers(200))

    page.get_by_role("button", name="Suspend").click()
    page.get_by_role("dialog").get_by_role("button", name="Suspend").click()
    told(page, "refused now")
    until(lambda: not answers(200))
    look_at(tab)
    page.get_by_role("button", name="Resume").click()
    page.get_by_role("dialog").get_by_role("button", name="Resume").click()
    until(lambda: answers(200))
    page.get_by_role("link", name="Audit").click()
    page.get_by_label("Action").select_option("tenant.suspended")
    page.wait_for_url("**action=tenant.suspended**")
    expect(page.locator("tbody tr")).to_have_count(1)
    page.locator("tbody a.mono").click()
    page.wait_for_url(f"**target={tenant}")
    expect(page.locator("tbody code").filter(has_text="tenant.")).to_have_text(
        ["tenant.resumed", "tenant.suspended", "tenant.changed", "tenant.changed", "tenant.created"]
    )
    look_at(tab)


def test_an_endpoint_that_nobody_answers_at_is_in_trouble(
    platform: RunningPlatform, program: httpx.Client, open_tab: OpenTab
) -> None:
    url = "http://127.0.0.1:9/hook"  # nobody listens there
    made = program.post("/v1/webhook-endpoints", json={"url": url, "events": ["job.succeeded"]})
    endpoint = made.raise_for_status().json()["id"]
    assert run(program, "Invoice")["status"] == "succeeded"
    tab = enter(platform, open_tab, "/admin/health")
    page = tab.page
    for part in ("PostgreSQL", "Redis", "Outbox", "Work is taken"):
        expect(page.locator(".checks > div", has_text=part)).to_contain_text("Well")
    expect(page.get_by_role("region", name="Webhook endpoints in trouble")).to_contain_text(url)
    expect(page.locator(".tile", has_text="To be tried again").locator("dd").first).not_to_have_text("0")
    look_at(tab)
    program.delete(f"/v1/webhook-endpoints/{endpoint}").raise_for_status()
    expect(page.get_by_text(url)).to_have_count(0)
    tab.check()


def test_the_overview_draws_what_was_done(platform: RunningPlatform, program: httpx.Client, open_tab: OpenTab) -> None:
    assert run(program, "Invoice")["status"] == "succeeded"
    tab = enter(platform, open_tab, "/admin/")
    page = tab.page
    drawn = {"Jobs finished": "Succeeded", "Tokens": "Output", "Time to first token": "p50", "Engines": "KV in use"}
    until(lambda: _measured(page))  # minutes are told when they are over
    page.reload()
    for title, line in drawn.items():
        chart = page.locator("figure.chart", has=page.get_by_role("heading", name=title, exact=True))
        expect(chart.locator("canvas")).to_be_attached()
        expect(chart.locator(".lines li", has_text=line)).to_be_visible()
    chart = page.locator("figure.chart", has_text="Jobs finished")
    chart.get_by_text("As a table").click()
    expect(chart.locator("tbody td:not(:first-child)").filter(has_text=re.compile("[1-9]")).first).to_be_visible()
    look_at(tab)
    page.get_by_role("link", name="30d").click()
    page.wait_for_url("**range=30d")
    expect(page.locator("figure.chart canvas").first).to_be_attached()
    tab.check()


def _measured(page: Page) -> bool:
    """Whether jobs of the last hour stand in the chart's points."""
    lines = page.request.get(page.url + "charts/jobs?range=1h").json()["lines"]
    return any(line["label"] == "Succeeded" and any(line["values"]) for line in lines)
