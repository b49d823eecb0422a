"""The operators' pages in Chromium: nothing that axe finds, no word in the console, charts drawn, buttons that work."""

import re
import time
from collections.abc import Callable

import pytest
from penstock.auth.audit import Actor, ActorKind
from penstock.auth.models import AuditEntry, Tenant, User
from penstock.auth.services import Role
from penstock.registry.models import Worker
from penstock.rollouts.models import Rollout
from playwright.sync_api import Route, expect
from sqlalchemy import select, update

from tests.browser.conftest import Site, Tab
from tests.browser.test_pages import violations
from tests.platform.portal.scene import Scene, set_scene

OpenTab = Callable[..., Tab]


@pytest.fixture
def scene(site: Site) -> Scene:
    """The site's person is an operator, of an installation at work."""
    with site.database.transaction() as session:
        session.execute(update(User).values(role=Role.OPERATOR))
        user = session.scalars(select(User)).one()
        actor = Actor(ActorKind.USER, user.id, user.email, None, scopes=())
        return set_scene(session, session.get_one(Tenant, site.tenant.id), actor)


@pytest.mark.parametrize(("screen", "scheme"), [("narrow", "dark"), ("wide", "light")])
def test_pages_are_accessible_and_fit(site: Site, scene: Scene, open_tab: OpenTab, screen: str, scheme: str) -> None:
    rollout = f"/admin/rollouts/{scene.rollout_id}"
    tab = open_tab(site.base, screen=screen, scheme=scheme, reduced_motion="reduce")
    tab.open("/admin/")
    tab.sign_in_to("**/admin/")
    for path in (
        "/admin/", "/admin/workers", "/admin/models", f"/admin/models/{scene.model}", "/admin/rollouts", rollout,
        f"{rollout}/flips", "/admin/policies", f"/admin/policies/{scene.model}",
        "/admin/dead-letters", "/admin/tenants", f"/admin/tenants/{site.tenant.id}",
        "/admin/audit", "/admin/health",
    ):  # fmt: skip
        tab.open(path)
        for chart in tab.page.locator("figure.chart").all():
            expect(chart.locator("canvas")).to_be_attached()
        assert violations(tab) == [], path
        assert tab.shifted() < 0.05, path
        tab.check()
    tab.page.route("**/js/clock.js", come_late)
    tab.open("/admin/dead-letters")
    expect(tab.page.locator("time[title]").first).to_be_visible()
    assert tab.shifted() < 0.05, "moments get their words after the page was painted"


def come_late(route: Route) -> None:
    time.sleep(0.4)
    route.continue_()


def test_charts_are_read_by_keyboard_and_as_a_table_in_both_themes(site: Site, scene: Scene, open_tab: OpenTab) -> None:
    tab = open_tab(site.base)
    tab.open("/admin/?range=1h")
    tab.sign_in_to("**/admin/*")
    chart = tab.page.locator("figure.chart", has_text="Time to first token")
    plot = chart.locator(".plot")
    expect(plot).to_have_attribute("aria-label", re.compile(r"p50 \d+ ms, p95"))
    last = plot.get_attribute("aria-label")
    plot.focus()
    tab.page.keyboard.press("ArrowLeft")
    tab.page.keyboard.press("ArrowLeft")
    expect(plot).not_to_have_attribute("aria-label", last or "")
    expect(chart.locator(".when")).not_to_be_empty()
    chart.get_by_text("As a table").click()
    expect(chart.locator("tbody tr")).to_have_count(60)
    expect(chart.locator("thead th")).to_have_text(["Time", "p50", "p95", "p99"])
    ink = "getComputedStyle(document.querySelector('figure.chart .probe')).color"
    light = tab.page.evaluate(ink)
    tab.page.get_by_role("button", name="Change between light and dark").click()
    tab.page.wait_for_function(f"({ink}) !== '{light}'")
    tab.page.get_by_role("link", name="30d").click()
    tab.page.wait_for_url("**range=30d")
    tab.page.go_back()
    tab.page.wait_for_url("**range=1h")
    tab.check()


def test_operators_act_with_a_reason(site: Site, scene: Scene, open_tab: OpenTab) -> None:
    tab = open_tab(site.base)
    tab.open(f"/admin/rollouts/{scene.rollout_id}")
    tab.sign_in_to("**/admin/rollouts/*")
    page = tab.page
    page.get_by_role("button", name="Pause").click()
    question = page.get_by_role("dialog", name="Pause the rollout?")
    question.get_by_label("Reason").fill("the auditors are here")
    question.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("status").filter(has_text="every new job goes to the champion")).to_be_visible()
    expect(page.get_by_text("the auditors are here")).to_be_visible()
    with site.database.transaction() as session:
        assert session.get_one(Rollout, scene.rollout_id).state == "paused"
        assert session.scalars(select(AuditEntry).where(AuditEntry.action == "rollout.paused")).one()
    page.get_by_role("link", name="Workers").click()
    worker = page.get_by_role("region", name="gpu-7")
    worker.first.get_by_role("button", name="Drain").click()
    question = page.get_by_role("dialog")
    expect(question).to_be_visible()
    page.keyboard.press("Escape")
    expect(question).to_be_hidden()
    with site.database.transaction() as session:
        assert session.get_one(Worker, scene.worker_id).drain_requested_at is None
    worker.first.get_by_role("button", name="Drain").click()
    page.get_by_role("dialog").get_by_role("button", name="Drain").click()
    expect(worker.first.get_by_text("Draining")).to_be_visible()
    tab.check()


def test_the_navigation_folds_away_on_narrow_screens(site: Site, scene: Scene, open_tab: OpenTab) -> None:
    tab = open_tab(site.base, screen="narrow")
    tab.open("/admin/health")
    tab.sign_in_to("**/admin/health")
    navigation = tab.page.get_by_role("navigation", name="Main")
    expect(navigation).to_be_hidden()
    tab.page.get_by_role("button", name="Open the navigation").click()
    expect(navigation).to_be_visible()
    assert violations(tab) == []
    tab.page.keyboard.press("Escape")
    expect(navigation).to_be_hidden()
    tab.page.get_by_role("button", name="Open the navigation").click()
    navigation.get_by_role("link", name="Tenants").click()
    tab.page.wait_for_url("**/admin/tenants")
    tab.check()


def test_a_page_that_follows_leaves_an_open_question_alone(site: Site, scene: Scene, open_tab: OpenTab) -> None:
    """Also where the next state of the page was on its way when the question was asked."""
    on_their_way: list[Route] = []
    tab = open_tab(site.base)
    tab.open("/admin/workers")
    tab.sign_in_to("**/admin/workers")
    page = tab.page
    with page.expect_request("**/admin/workers/parts*"):
        page.route("**/admin/workers/parts*", lambda route: on_their_way.append(route))
    page.get_by_role("region", name="gpu-7").first.get_by_role("button", name="Drain").click()
    question = page.get_by_role("dialog")
    expect(question).to_be_visible()
    with page.expect_event("requestfinished"):
        on_their_way[0].continue_()
    page.wait_for_timeout(100)  # in which it would be swapped in
    expect(question).to_be_visible()
    tab.check()
