"""What a customer does on every page, against the whole running platform: a real engine answers, real messages arrive.

The stories play in a tenant of their own and do not build on each other. Where one needs a moment to last, a process of
the platform stands still meanwhile.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from penstock.auth.models import User
from penstock.auth.services import Scope, create_api_key
from penstock.client import verify_webhook
from penstock.db import Database
from playwright.sync_api import Download, Page, expect
from sqlalchemy import select

from tests.browser.conftest import ADMINISTRATOR, ROOT, SCREENS, RunningPlatform, Tab, paused
from tests.browser.test_pages import violations
from tests.browser.test_work import DROP
from tests.platform.webhooks.receiver import Receiver, receiving

OpenTab = Callable[..., Tab]
MODEL = "invoice-extractor"
INVOICE = (ROOT / "examples/invoices/samples/12.txt").read_text()
TINY = {"model": MODEL, "input": {"prompt": "Invoice"}, "params": {"max_tokens": 8, "ignore_eos": True}}
PATIENCE_SECONDS = 60.0


@pytest.fixture(scope="module")
def program(platform: RunningPlatform) -> Iterator[httpx.Client]:
    """The customer's program, which uses the API with a key of theirs."""
    with closing(Database(platform.settings, pool_size=1)) as database, database.transaction() as session:
        tenant = session.scalars(select(User.tenant_id).where(User.email == ADMINISTRATOR)).one()
        _, key = create_api_key(
            session, tenant_id=tenant, name="Books", scopes=(Scope.JOBS_READ, Scope.JOBS_WRITE),
            environment=platform.settings.environment,
        )  # fmt: skip
    with httpx.Client(
        base_url=platform.url, headers={"Authorization": f"Bearer {key}"}, trust_env=False, timeout=PATIENCE_SECONDS
    ) as client:
        yield client


def submit(program: httpx.Client, tag: str, *, wait: int = 0) -> dict[str, Any]:
    answer = program.post("/v1/jobs", json=TINY | {"tags": [tag]}, headers={"Prefer": f"wait={wait}"})
    answer.raise_for_status()
    document: dict[str, Any] = answer.json()
    return document


def enter(platform: RunningPlatform, open_tab: OpenTab, path: str, **look: str) -> Tab:
    """A tab in which the customer has signed in, at `path`."""
    tab = open_tab(platform.url, reduced_motion="reduce", **look)
    tab.open("/sign-in")
    tab.sign_in(ADMINISTRATOR)
    tab.open(path)
    return tab


def look_at(tab: Tab) -> None:
    """Fail unless axe finds nothing on the page as it stands, and it fits both screens without a complaint."""
    assert violations(tab) == [], tab.page.url
    before = tab.page.viewport_size
    for width, height in SCREENS.values():
        tab.page.set_viewport_size({"width": width, "height": height})
        tab.check()
    assert before is not None
    tab.page.set_viewport_size(before)


def test_jobs_are_filtered_followed_cancelled_and_replayed(
    platform: RunningPlatform, program: httpx.Client, open_tab: OpenTab
) -> None:
    with paused(platform.worker_pid):
        tab = enter(platform, open_tab, "/jobs?tag=ledger")
        page = tab.page
        expect(page.get_by_role("heading", name="No job matches")).to_be_visible()
        jobs = {submit(program, "ledger")["id"] for _ in range(3)}
        expect(page.locator("#rows .badge.queued")).to_have_count(3)
        page.get_by_label("Class", exact=True).select_option("batch")
        page.wait_for_url("**class=batch**")
        expect(page.get_by_role("heading", name="No job matches")).to_be_visible()
        page.go_back()
        page.get_by_role("link", name="Queued", exact=True).click()
        page.wait_for_url("**status=queued**")
        _stop_before_anything_is_done(platform, page)
        page.get_by_role("link", name="The jobs that match").click()
        expect(page.locator("#rows .badge.queued")).to_have_count(3)
        _do_to_all(page, "Cancel", 3)
    page.get_by_role("link", name="Jobs", exact=True).first.click()
    page.get_by_role("link", name="Cancelled", exact=True).click()
    page.get_by_label("Tag").fill("ledger")
    page.get_by_role("button", name="Filter").click()
    page.wait_for_url("**tag=ledger**")
    _do_to_all(page, "Replay", 3)
    look_at(tab)
    tab.open("/jobs?tag=ledger&status=succeeded")
    expect(page.locator("#rows .badge.succeeded")).to_have_count(3)
    tab.check()
    replayed = program.get("/v1/jobs?tag=ledger&status=succeeded").json()["data"]
    assert {job["retry_of"] for job in replayed} == jobs


def _stop_before_anything_is_done(platform: RunningPlatform, page: Page) -> None:
    """Begin to cancel while nobody does the work, and think better of it."""
    with paused(platform.control_pid):
        page.get_by_role("link", name="Cancel all that match").click()
        page.get_by_role("button", name="Cancel them").click()
        expect(page.locator("#operation [role=status]")).to_have_text("Gathering")
        page.get_by_role("button", name="Stop here").click()
        expect(page.locator("#operation [role=status]")).to_have_text("Cancelled")


def _do_to_all(page: Page, verb: str, count: int) -> None:
    page.get_by_role("link", name=f"{verb} all that match").click()
    expect(page.locator(".count-line")).to_contain_text(f"{count} jobs")
    page.get_by_role("button", name=f"{verb} them").click()
    expect(page.locator("#operation [role=status]")).to_have_text("Completed")
    expect(page.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "100")
    expect(page.locator(".tile", has_text="Done")).to_contain_text(str(count))


def test_a_running_job_is_cancelled_edited_run_again_and_judged(
    platform: RunningPlatform, program: httpx.Client, open_tab: OpenTab
) -> None:
    tab = enter(platform, open_tab, "/jobs/new", screen="narrow", scheme="dark")
    page = tab.page
    page.get_by_role("radio", name="Prompt").check()
    page.get_by_role("textbox", name="Prompt", exact=True).fill("Invoice")
    page.get_by_label("Most tokens").fill("900")
    page.get_by_label("Answers", exact=True).fill("16")
    page.get_by_label("Further parameters").fill('{"ignore_eos": true}')
    page.get_by_role("button", name="Submit").click()
    status = page.locator("#job-head [role=status]")
    expect(page.locator("#output")).not_to_be_empty()
    with paused(platform.worker_pid):
        page.get_by_role("button", name="Cancel").click()
        expect(status).to_have_text("Cancelling")
    expect(status).to_have_text("Cancelled")
    page.get_by_role("link", name="Edit and rerun").click()
    page.get_by_label("Most tokens").fill("8")
    page.get_by_label("Answers", exact=True).fill("1")
    look_at(tab)
    page.get_by_role("button", name="Submit").click()
    expect(status).to_have_text("Succeeded")
    expect(page.locator("#job-figures")).to_contain_text("8 tokens")
    page.get_by_role("radio", name="Bad").check()
    page.get_by_label("Comment").fill("It names no sum")
    page.get_by_role("button", name="Send feedback").click()
    expect(page.locator("#job-feedback")).to_contain_text(f"It names no sum {ADMINISTRATOR}")
    look_at(tab)
    job = page.url.rsplit("/", 1)[1]
    (kept,) = program.get(f"/v1/jobs/{job}/feedback").json()["data"]
    assert (kept["score"], kept["comment"]) == (0.0, "It names no sum")


def test_the_playground_compares_goes_on_and_holds_to_a_schema(
    platform: RunningPlatform, program: httpx.Client, open_tab: OpenTab
) -> None:
    tab = enter(platform, open_tab, "/playground")
    page = tab.page
    page.get_by_label("Version", exact=True).select_option(MODEL)
    page.get_by_label("Beside it").select_option(f"{MODEL}:1")
    page.get_by_role("textbox", name="Message").nth(1).fill(INVOICE)
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Most tokens").fill("12")
    page.get_by_role("button", name="Run").click()
    page.wait_for_url("**/playground?job=job_*&job=job_*")
    expect(page.locator(".stats .badge")).to_have_text(["Succeeded", "Succeeded"])
    job = page.locator("[data-answer] h2").first.get_attribute("id")
    assert job is not None
    answer = program.get(f"/v1/jobs/{job.removeprefix('answer-')}").json()["output"]["choices"][0]["text"]
    expect(page.locator(".answers .output")).to_have_text([answer, answer])
    look_at(tab)
    page.get_by_role("link", name="Go on from here").first.click()
    messages = page.get_by_role("textbox", name="Message")
    expect(messages).to_have_count(3)
    expect(messages.nth(1)).to_have_value(answer)
    messages.nth(2).fill("Is it paid?")
    page.get_by_label("Most tokens").fill("16")
    page.get_by_label("JSON schema").fill('{"type": "boolean"}')
    page.get_by_role("button", name="Run").click()
    page.wait_for_url("**/playground?job=job_*")
    expect(page.locator(".stats .badge")).to_have_text(["Succeeded"])
    assert json.loads(page.locator(".answers .output").inner_text()) in (True, False)
    tab.check()


def jsonl(*lines: dict[str, Any]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def line(custom_id: str, **changes: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/jobs", "body": TINY | changes}


def results(download: Download) -> dict[str, str]:
    """Each line's id and status."""
    told = [json.loads(each) for each in Path(download.path()).read_text().splitlines()]
    return {each["custom_id"]: each["status"] for each in told}


def make_batch(page: Page) -> None:
    page.get_by_label("Each line asks").select_option("/v1/jobs")
    page.get_by_role("button", name="Make the batch").click()
    page.wait_for_url("**/batches/batch_*")


def test_a_file_is_corrected_by_line_and_its_batch_steered_to_its_end(
    platform: RunningPlatform, open_tab: OpenTab
) -> None:
    tab = enter(platform, open_tab, "/batches/new", screen="narrow")
    page = tab.page
    wrong = jsonl(line("one"), line("two", model="nobody")) + '{"custom_id": "three", \n'
    page.get_by_label("File to upload").set_input_files(
        {"name": "wrong.jsonl", "mimeType": "application/jsonl", "buffer": wrong.encode()}
    )
    expect(page.get_by_label("File", exact=True)).to_contain_text("wrong.jsonl · just uploaded")
    make_batch(page)
    status = page.locator("#batch-head [role=status]")
    expect(status).to_have_text("Failed")
    expect(page.locator(".line-errors tbody td:first-child")).to_have_text(["2", "3"])
    look_at(tab)
    tab.open("/batches/new")
    page.evaluate(DROP, [".drop", "right.jsonl", jsonl(line("one"), line("two"), line("three"))])
    expect(page.get_by_label("File", exact=True)).to_contain_text("right.jsonl · just uploaded")
    with paused(platform.worker_pid):
        make_batch(page)
        expect(page.locator("#batch-lines .badge.queued")).to_have_count(3)
        _steer(page)
        _cancel_third_line(page)
        assert _downloaded(page, "Results so far") == {"three": "cancelled"}
    expect(status).to_have_text("Completed")
    assert _downloaded(page, "All results") == {"one": "succeeded", "two": "succeeded", "three": "cancelled"}
    look_at(tab)
    before = page.url
    page.get_by_role("button", name="Retry line 3").click()
    page.wait_for_url(lambda url: "/batches/batch_" in url and url != before)
    expect(status).to_have_text("Completed")
    assert _downloaded(page, "All results") == {"three": "succeeded"}
    tab.check()


def _steer(page: Page) -> None:
    status = page.locator("#batch-head [role=status]")
    page.get_by_role("button", name="Pause").click()
    expect(status).to_have_text("Paused")
    page.get_by_role("button", name="Go on").click()
    expect(status).to_have_text("In progress")
    page.get_by_role("button", name="Priority…").click()
    page.get_by_role("dialog").get_by_label("Priority").fill("7")
    page.get_by_role("button", name="Change", exact=True).click()
    expect(page.locator("#batch-facts dt:text('Priority') + dd")).to_have_text("7")


def _cancel_third_line(page: Page) -> None:
    page.locator("#line-3").click()
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#job-head [role=status]")).to_have_text("Cancelled")
    page.locator("dt:text('Batch') + dd a").click()
    expect(page.locator("#batch-lines .badge.cancelled")).to_have_count(1)


def _downloaded(page: Page, name: str) -> dict[str, str]:
    with page.expect_download() as download:
        page.get_by_role("link", name=name).click()
    return results(download.value)


def test_files_come_and_go_and_a_batch_of_one_is_cancelled(platform: RunningPlatform, open_tab: OpenTab) -> None:
    tab = enter(platform, open_tab, "/files", scheme="dark")
    page = tab.page
    content = jsonl(line("only"))
    page.get_by_label("File to upload").set_input_files(
        {"name": "night.jsonl", "mimeType": "application/jsonl", "buffer": content.encode()}
    )
    row = page.get_by_role("row", name="night.jsonl")
    expect(row).to_contain_text("Input")
    with page.expect_download() as download:
        row.get_by_role("link", name="Download night.jsonl").click()
    assert Path(download.value.path()).read_text() == content
    with paused(platform.worker_pid):
        row.get_by_role("link", name="Make a batch of night.jsonl").click()
        make_batch(page)
        expect(page.locator("#batch-lines .badge.queued")).to_have_count(1)
        page.get_by_role("button", name="Cancel…").click()
        page.get_by_role("button", name="Cancel it").click()
        expect(page.locator("#batch-head [role=status]")).to_have_text("Cancelled")
    page.get_by_role("link", name="Files").first.click()
    row.get_by_role("button", name="Delete night.jsonl").click()
    page.get_by_role("button", name="Delete it").click()
    expect(page.get_by_role("heading", name="Files", level=1)).to_be_visible()
    expect(row).to_have_count(0)
    look_at(tab)


def test_a_key_is_shown_once_opens_the_api_and_is_revoked(platform: RunningPlatform, open_tab: OpenTab) -> None:
    tab = enter(platform, open_tab, "/keys", screen="narrow", scheme="dark")
    page = tab.page
    page.get_by_label("Name").fill("import")
    page.get_by_label("Ends").select_option("30")
    page.get_by_label(MODEL).check()
    page.get_by_role("button", name="Make the key").click()
    secret = page.locator("#secret").inner_text()
    look_at(tab)
    page.get_by_role("link", name="I have kept it").click()
    expect(page.get_by_role("row", name="import")).to_contain_text(f"only {MODEL}")
    assert secret not in page.content()
    headers = {"Authorization": f"Bearer {secret}"}
    with httpx.Client(base_url=platform.url, headers=headers, trust_env=False, timeout=PATIENCE_SECONDS) as client:
        assert submit(client, "imported", wait=60)["status"] == "succeeded"
        page.get_by_role("button", name="Revoke import").click()
        page.get_by_role("button", name="Revoke it").click()
        expect(page.get_by_role("row", name="import")).to_contain_text("Revoked")
        patience = time.monotonic() + PATIENCE_SECONDS
        while (status := client.get("/v1/jobs").status_code) == 200 and time.monotonic() < patience:
            time.sleep(0.1)
    assert status == 401
    look_at(tab)


def test_webhooks_are_signed_sent_again_and_their_secret_rotated(
    platform: RunningPlatform, program: httpx.Client, open_tab: OpenTab
) -> None:
    tab = enter(platform, open_tab, "/webhooks")
    page = tab.page
    with receiving() as receiver:
        page.get_by_label("Address").fill(receiver.url)
        page.get_by_role("button", name="Add endpoint").click()
        secret = page.locator("#secret").inner_text()
        page.get_by_role("link", name="To the endpoint").click()
        assert secret not in page.content()
        ping = _ping(page, receiver)
        verify_webhook(ping, receiver.requests[-1].body, secret)
        look_at(tab)
        _send_a_jobs_message_again(page, receiver, submit(program, "told", wait=60)["id"])
        page.get_by_role("button", name="Rotate secret…").click()
        page.get_by_role("button", name="Rotate", exact=True).click()
        fresh = page.locator("#secret").inner_text()
        page.get_by_role("link", name="To the endpoint").click()
        again = _ping(page, receiver)
        for signer in (secret, fresh):
            verify_webhook(again, receiver.requests[-1].body, signer)
        _change_and_delete(page)
    tab.check()


def _ping(page: Page, receiver: Receiver) -> dict[str, str]:
    """The headers of a test message, once the page says that it has arrived."""
    page.get_by_role("button", name="Send a test").click()
    page.wait_for_url("**/webhooks/deliveries/*")
    expect(page.locator("#attempts [role=status]")).to_have_text("Delivered")
    return receiver.requests[-1].headers


def _send_a_jobs_message_again(page: Page, receiver: Receiver, job: str) -> None:
    """Once by itself from its own page, once with all that was sent to the endpoint."""
    page.get_by_role("link", name="The endpoint").click()
    row = page.get_by_role("row", name=job[-8:])
    expect(row).to_contain_text("Delivered")
    row.get_by_role("link", name="job.succeeded").click()
    page.get_by_role("button", name="Send again").click()
    expect(page.locator(".timeline li")).to_have_count(2)
    page.get_by_role("link", name="The endpoint").click()
    page.get_by_role("button", name="Replay…").click()
    page.get_by_label("Queued since").fill("2020-01-01T00:00")
    page.get_by_label("Also those that arrived").check()
    page.get_by_role("dialog").get_by_role("button", name="Send again").click()
    expect(row.locator("td[data-label=Attempts]")).to_have_text("3")
    of_job = [each.headers["webhook-id"] for each in receiver.requests if job in each.body.decode()]
    assert len(of_job) == 3
    assert len(set(of_job)) == 1


def _change_and_delete(page: Page) -> None:
    page.get_by_role("link", name="The endpoint").click()
    page.get_by_role("button", name="Edit…").click()
    page.get_by_role("dialog").get_by_label("Description").fill("Bookkeeping")
    page.get_by_role("button", name="Save").click()
    expect(page.locator(".head")).to_contain_text("Bookkeeping")
    page.get_by_role("button", name="Disable it").click()
    expect(page.locator(".head")).to_contain_text("Disabled")
    page.get_by_role("button", name="Enable it again").click()
    expect(page.locator(".head")).to_contain_text("Active")
    page.get_by_role("button", name="Delete…").click()
    page.get_by_role("button", name="Delete it").click()
    expect(page.get_by_role("heading", name="No endpoint yet")).to_be_visible()


def test_usage_tells_what_ran_until_the_customer_signs_out(
    platform: RunningPlatform, program: httpx.Client, open_tab: OpenTab
) -> None:
    used = submit(program, "counted", wait=60)["usage"]
    tab = enter(platform, open_tab, "/usage?days=7&by=model", screen="narrow")
    page = tab.page
    page.get_by_role("link", name="Tag", exact=True).click()
    page.wait_for_url("**by=tag**")
    row = page.get_by_role("row", name="counted")
    expect(row.locator("td[data-label=Jobs]")).to_have_text("1")
    expect(row.locator("td[data-label=Prompt]")).to_have_text(str(used["prompt_tokens"]))
    expect(row.locator("td[data-label=Output]")).to_have_text("8")
    with page.expect_download() as download:
        page.get_by_role("link", name="CSV").click()
    picture = page.get_by_role("img", name="Tokens by day")
    picture.focus()
    picture.press("End")
    expect(page.locator("figure.days output")).to_contain_text("output tokens")
    (counted,) = [each for each in Path(download.value.path()).read_text().splitlines() if "counted" in each]
    assert counted.split(",")[1] == "counted"
    page.get_by_role("link", name="Key", exact=True).click()
    expect(page.get_by_role("row", name="Books")).to_be_visible()
    look_at(tab)
    page.get_by_label(f"Account of {ADMINISTRATOR}").click()
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url("**/sign-in")
    tab.open("/usage")
    expect(page.get_by_role("button", name="Sign in")).to_be_visible()
    tab.check()
