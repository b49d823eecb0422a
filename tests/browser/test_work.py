"""What people do on the pages of work and account, with a worker that the test plays."""

import json
from collections.abc import Callable

from penstock.auth.models import User
from penstock.batches.models import Batch
from penstock.batches.tending import BatchTender
from penstock.bulk.tending import BulkTender
from penstock.bulk.work import JOB_WORKS
from penstock.settings import Settings
from playwright.sync_api import Page, expect
from redis import Redis
from sqlalchemy import func, update

from tests.browser.conftest import Site, Tab
from tests.platform.batches.serving import workshop_of

OpenTab = Callable[..., Tab]
DROP = """
([area, name, text]) => {
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([text], name, {type: "application/jsonl"}));
  for (const type of ["dragenter", "dragover", "drop"]) {
    const event = new DragEvent(type, {dataTransfer, bubbles: true, cancelable: true});
    document.querySelector(area).dispatchEvent(event);
  }
}
"""


def lines(*names: str) -> str:
    body = {"model": "tiny", "input": {"prompt": "hello there"}}
    asked = ({"custom_id": name, "method": "POST", "url": "/v1/jobs", "body": body} for name in names)
    return "".join(json.dumps(each) + "\n" for each in asked)


def test_the_playground_answers_on_its_page(site: Site, open_tab: OpenTab) -> None:
    tab = open_tab(site.base)
    tab.open("/playground")
    page = tab.page
    page.get_by_label("Email").fill("ada@example.com")
    page.get_by_label("Password").fill("correct horse battery")
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/playground")
    message = page.get_by_role("textbox", name="Message").nth(1)
    message.fill("hello there my friend")
    expect(page.locator("#count")).to_contain_text("4 tokens of 256")
    page.get_by_role("button", name="As code").click()
    expect(page.get_by_role("dialog")).to_contain_text("client.jobs.submit(")
    page.get_by_role("button", name="Close").click()
    message.press("Control+Enter")
    page.wait_for_url("**/playground?job=job_*#answers")
    output = page.locator(".answers .output")
    expect(output).to_have_attribute("data-live", "")
    site.worker.claim()
    site.worker.write("<b>so", " far")
    expect(output).to_have_text("<b>so far")
    expect(page.locator("[data-token-count]")).to_have_text("2")
    assert tab.shifted() < 0.02
    site.worker.write(" so good")
    site.worker.finish()
    expect(page.locator(".stats .badge")).to_have_text("Succeeded")
    expect(output).to_have_text("<b>so far so good")
    page.reload()
    expect(page.locator(".answers .output")).to_have_text("<b>so far so good")
    page.get_by_role("link", name="Go on from here").click()
    expect(page.get_by_role("textbox", name="Message")).to_have_count(3)
    page.go_back()
    expect(page.locator(".answers .output")).to_have_text("<b>so far so good")
    tab.check()


def test_a_dropped_file_becomes_a_batch_whose_lines_come_in(
    site: Site, open_tab: OpenTab, settings: Settings, redis: Redis
) -> None:
    tender = BatchTender(workshop_of(settings, site.database, redis))
    tab = open_tab(site.base, screen="narrow", scheme="dark")
    tab.open("/jobs")
    tab.sign_in()
    tab.open("/batches/new")
    page = tab.page
    page.evaluate(DROP, [".drop", "night.jsonl", lines("one", "two")])
    expect(page.get_by_label("File", exact=True)).to_contain_text("night.jsonl · just uploaded")
    page.get_by_label("Each line asks").select_option("/v1/jobs")
    page.get_by_role("button", name="Make the batch").click()
    page.wait_for_url("**/batches/batch_*")
    _tend(site, tender)
    site.worker.claim()
    site.worker.write("first answer")
    site.worker.finish()
    _tend(site, tender)
    expect(page.locator("#batch-lines")).to_contain_text("first answer")
    expect(page.locator("#batch-figures")).to_contain_text("of 2")
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#batch-head [role=status]")).to_have_text("Paused")
    with page.expect_download() as download:
        page.get_by_role("link", name="Results so far").click()
    result = json.loads(download.value.path().read_text())
    assert (result["custom_id"], result["status"]) == ("one", "succeeded")
    tab.check()


def test_many_jobs_are_cancelled_and_the_page_follows(
    site: Site, open_tab: OpenTab, settings: Settings, redis: Redis
) -> None:
    for _ in range(3):
        site.submit(tags=["old"])
    tab = open_tab(site.base)
    tab.open("/jobs?tag=old")
    tab.sign_in()
    page = tab.page
    page.get_by_role("link", name="Cancel all that match").click()
    expect(page.get_by_text("3 jobs")).to_be_visible()
    page.get_by_role("button", name="Cancel them").click()
    page.wait_for_url("**/jobs/bulk/bulk_*")
    tender = BulkTender(workshop_of(settings, site.database, redis), JOB_WORKS)
    while tender.work_once():
        pass
    expect(page.locator("[role=status] .badge")).to_have_text("Completed")
    expect(page.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "100")
    page.get_by_role("link", name="Jobs", exact=True).first.click()
    page.get_by_label("Time").select_option("1h")
    page.wait_for_url("**within=1h**")
    expect(page.locator("#rows .badge.cancelled")).to_have_count(3)
    _tick_and_replay(site, tender, page)
    page.get_by_role("link", name="Jobs", exact=True).first.click()
    page.locator(".open").first.click()
    page.get_by_role("tab", name="Output").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tabpanel")).to_contain_text("hello there")
    expect(page.get_by_role("tab", name="Input")).to_be_focused()
    tab.check()


def _tick_and_replay(site: Site, tender: BulkTender, page: Page) -> None:
    """Ticks outlive the list's renewals, also those of rows that have left it, and lead to an operation."""
    page.get_by_role("link", name="Queued", exact=True).click()
    for _ in range(2):
        site.submit()
    boxes, bar = page.locator("#rows .tick input"), page.locator("#chosen")
    expect(boxes).to_have_count(2)
    expect(bar).to_be_hidden()
    page.get_by_label("Select all jobs on this page").focus()
    page.keyboard.press("Space")
    expect(bar.locator("output")).to_have_text("2 selected")
    boxes.first.uncheck()
    site.worker.claim()
    site.worker.finish()
    expect(boxes).to_have_count(1)
    expect(bar.locator("output")).to_have_text("1 selected, 1 not on this page")
    site.submit()
    expect(boxes).to_have_count(2)
    boxes.first.check()
    expect(bar.locator("output")).to_have_text("2 selected, 1 not on this page")
    bar.get_by_role("button", name="Replay").click()
    expect(page.get_by_text("2 jobs were ticked")).to_be_visible()
    page.get_by_role("button", name="Replay them").click()
    page.wait_for_url("**/jobs/bulk/bulk_*")
    while tender.work_once():
        pass
    expect(page.locator("#operation .tile").filter(has_text="Skipped")).to_contain_text("1")
    expect(page.locator("[role=status] .badge")).to_have_text("Completed")


def test_a_key_is_made_seen_once_and_revoked(site: Site, open_tab: OpenTab) -> None:
    with site.database.transaction() as session:
        session.execute(update(User).values(role="admin"))
    tab = open_tab(site.base, screen="narrow")
    tab.open("/jobs")
    tab.sign_in()
    tab.open("/keys")
    page = tab.page
    page.get_by_label("Name").fill("import")
    page.get_by_role("button", name="Make the key").click()
    expect(page.locator("#secret")).to_contain_text("psk_test_")
    secret = page.locator("#secret").inner_text()
    page.get_by_role("link", name="I have kept it").click()
    assert secret not in page.content()
    page.get_by_role("button", name="Revoke import").click()
    page.get_by_role("button", name="Revoke it").click()
    expect(page.locator(".toast")).to_contain_text("import is revoked")
    expect(page.locator("tbody")).to_contain_text("Revoked")
    tab.check()


def _tend(site: Site, tender: BatchTender) -> None:
    """Bring the batch as far as it gets for now."""
    with site.database.transaction() as session:
        session.execute(update(Batch).values(due_at=func.now()))
    while tender.work_once():
        pass
