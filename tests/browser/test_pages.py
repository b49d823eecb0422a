"""Every page, narrow and wide, light and dark: nothing that axe finds, usable by keyboard, the theme remembered."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from penstock.auth.models import User
from penstock.jobs.states import JobState
from playwright.sync_api import expect
from sqlalchemy import update

from tests.browser.conftest import Site, Tab

AXE = Path(__file__).parent / "vendor/axe.min.js"
OpenTab = Callable[..., Tab]


def violations(tab: Tab) -> list[dict[str, Any]]:
    """What axe finds against WCAG 2.2 A and AA and its best practices, in short."""
    tab.page.evaluate(AXE.read_text())
    found = tab.page.evaluate(
        "axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice']})"
    )
    return [
        {"rule": each["id"], "impact": each["impact"], "where": [node["html"][:160] for node in each["nodes"]]}
        for each in found["violations"]
    ]


def pages_of(site: Site) -> list[str]:
    """A page of every kind, on a site that has jobs in all stages, for an administrator."""
    with site.database.transaction() as session:
        session.execute(update(User).values(role="admin"))
    failed = site.submit(tags=["nightly"])
    site.worker.claim()
    site.worker.write("half an ")
    site.worker.lose()
    site.worker.claim()
    site.worker.write("answer")
    site.worker.finish(JobState.FAILED)
    finished = site.submit(input={"messages": [{"role": "user", "content": "hello"}]}, metadata={"order": "17"})
    site.worker.claim()
    site.worker.write('{"total": 12}')
    site.worker.finish()
    running = site.submit()
    site.worker.claim()
    site.worker.write("so far")
    waiting = site.submit()
    jobs = [f"/jobs/{job.id}" for job in (failed, finished, running, waiting)]
    play = [f"/playground?job={finished.id}&job={running.id}", "/playground"]
    lists = ["/jobs", "/jobs?status=expired", "/jobs?tag=nightly&within=1h&class=interactive", "/jobs/bulk"]
    forms = ["/jobs/new", f"/jobs/new?from={finished.id}", "/jobs/bulk/new?action=replay&tag=nightly", "/batches/new"]
    return [*lists, *forms, *jobs, *play, "/batches", "/files", "/keys", "/webhooks", "/usage"]


@pytest.mark.parametrize(("screen", "scheme"), [("narrow", "dark"), ("wide", "light")])
def test_pages_are_accessible_and_fit(site: Site, open_tab: OpenTab, screen: str, scheme: str) -> None:
    paths = pages_of(site)
    tab = open_tab(site.base, screen=screen, scheme=scheme, reduced_motion="reduce")
    tab.expected_statuses |= {401, 404, 422}
    tab.open("/sign-in")
    assert violations(tab) == [], "/sign-in"
    tab.check()
    tab.sign_in()
    for path in paths:
        tab.open(path)
        assert violations(tab) == [], path
        assert tab.shifted() < 0.02, path
        tab.check()
    for fold in tab.page.locator("details.fold > summary").all():
        fold.click()
    tab.check()
    tab.open("/jobs/new")
    tab.page.get_by_label("Temperature").fill("9")
    tab.page.get_by_role("button", name="Submit").click()
    expect(tab.page.get_by_text("Not submitted")).to_be_visible()
    assert violations(tab) == [], "the form with errors"
    tab.check()
    tab.open("/jobs/none")
    assert violations(tab) == [], "a page that is not there"
    tab.check()


def test_the_chosen_theme_is_remembered_and_sent_with_the_page(site: Site, open_tab: OpenTab) -> None:
    tab = open_tab(site.base, scheme="light")
    tab.open("/jobs")
    tab.sign_in()
    background = "getComputedStyle(document.documentElement).backgroundColor"
    light = tab.page.evaluate(background)
    tab.page.get_by_role("button", name="Change between light and dark").click()
    dark = tab.page.evaluate(background)
    assert dark != light
    tab.open("/jobs/new")
    assert tab.page.evaluate(background) == dark
    assert '<html lang="en" data-theme="dark">' in tab.page.context.request.get(f"{site.base}/jobs").text()
    tab.check()


def test_the_form_works_by_keyboard_alone(site: Site, open_tab: OpenTab) -> None:
    tab = open_tab(site.base)
    tab.open("/jobs/new")
    tab.sign_in()
    press = tab.page.keyboard.press
    press("Tab")
    expect(tab.page.get_by_role("link", name="Skip to the content")).to_be_focused()
    press("Enter")
    press("Tab")
    expect(tab.page.get_by_label("Model")).to_be_focused()
    press("Tab")
    press("ArrowRight")
    expect(tab.page.get_by_label("Prompt", exact=True).nth(0)).to_be_checked()
    press("Tab")
    tab.page.keyboard.type("hello by keyboard")
    press("Control+Enter")
    tab.page.wait_for_url("**/jobs/job_*")
    expect(tab.page.locator("#input")).to_contain_text("hello by keyboard")
    tab.check()


def test_messages_are_added_and_removed(site: Site, open_tab: OpenTab) -> None:
    tab = open_tab(site.base)
    tab.open("/jobs/new")
    tab.sign_in()
    page = tab.page
    page.get_by_role("textbox", name="Message").nth(1).fill("What is 2 + 2?")
    page.get_by_role("button", name="Add a message").click()
    page.get_by_role("textbox", name="Message").nth(2).fill("4")
    page.get_by_role("button", name="Add a message").click()
    page.get_by_role("textbox", name="Message").nth(3).fill("And 3 + 3?")
    page.get_by_role("button", name="Remove this message").nth(0).click()
    page.get_by_role("button", name="Submit").click()
    page.wait_for_url("**/jobs/job_*")
    headings = page.locator("#input h3").all_inner_texts()
    assert headings == ["User", "Assistant", "User"]
    tab.check()


def test_copying_gives_a_command_that_can_be_pasted(site: Site, open_tab: OpenTab) -> None:
    tab = open_tab(site.base, permissions=["clipboard-read", "clipboard-write"])
    tab.open("/jobs")
    tab.sign_in()
    tab.open(f"/jobs/{site.submit(input={'prompt': 'it is mine'}).id}")
    tab.page.get_by_role("button", name="Copy as curl").click()
    expect(tab.page.get_by_role("button", name="Copied")).to_be_visible()
    copied = tab.page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith(f"curl {site.base}/v1/jobs")
    assert "it is mine" in copied
    tab.check()


def test_back_and_deep_links_find_the_same_list(site: Site, open_tab: OpenTab) -> None:
    for tag in ("day", "night"):
        site.submit(tags=[tag])
    tab = open_tab(site.base)
    tab.open("/jobs?tag=night")
    tab.sign_in()
    page = tab.page
    assert page.url.endswith("/jobs?tag=night"), "signing in leads to the page that was asked for"
    expect(page.locator("#rows tr")).to_have_count(1)
    page.get_by_role("link", name="Queued", exact=True).click()
    page.locator(".open").click()
    expect(page.locator("#job-head")).to_be_visible()
    page.go_back()
    expect(page.locator("#rows tr")).to_have_count(1)
    assert "tag=night" in page.url
    assert "status=queued" in page.url
    tab.check()
