"""The whole of it: a person submits a real invoice in a browser, and a real engine answers on the open page."""

import json
from collections.abc import Callable

import httpx
import pytest
from playwright.sync_api import expect

from tests.browser.conftest import ROOT, RunningPlatform, Tab, paused

SAMPLES = ROOT / "examples/invoices/samples"
# Keeps every length that the output has had, so that the test can see tokens arrive one after the other.
WATCH_OUTPUT = """
addEventListener("DOMContentLoaded", () => {
  const output = document.querySelector("[data-stream]");
  if (!output) return;
  window.lengths = [];
  new MutationObserver(() => window.lengths.push(output.textContent.length))
    .observe(output, {childList: true, characterData: true, subtree: true});
});
"""


@pytest.mark.parametrize(("screen", "scheme"), [("wide", "light"), ("narrow", "dark")])
def test_a_job_is_submitted_streamed_and_finished(
    platform: RunningPlatform, open_tab: Callable[..., Tab], screen: str, scheme: str
) -> None:
    invoice = (SAMPLES / "01.txt").read_text()
    tab = open_tab(platform.url, screen=screen, scheme=scheme)
    page = tab.page
    page.add_init_script(WATCH_OUTPUT)
    tab.open("/")
    tab.sign_in()
    page.get_by_role("link", name="New job").first.click()
    expect(page.get_by_label("Model")).to_contain_text("invoice-extractor · version 1")
    expect(page.locator("#readiness")).to_contain_text("1 worker ready")
    page.get_by_role("textbox", name="Message").nth(1).fill(invoice)
    tab.check()
    with paused(platform.worker_pid):
        page.get_by_role("button", name="Submit").click()
        page.wait_for_url("**/jobs/job_*")
        expect(page.locator("#job-head [role=status]")).to_have_text("Queued")
        expect(page.locator("#output")).to_have_attribute("data-live", "")
        tab.check()
    expect(page.locator("#job-head [role=status]")).to_have_text("Succeeded")
    tab.check()

    job_id = page.url.rsplit("/", 1)[1]
    job = httpx.get(
        f"{platform.url}/v1/jobs/{job_id}", headers={"Authorization": f"Bearer {platform.api_key}"}, trust_env=False
    ).json()
    answer = job["output"]["choices"][0]["text"]
    assert isinstance(json.loads(answer), dict)
    expect(page.locator("#output")).to_have_text(answer)
    lengths = page.evaluate("window.lengths")
    assert lengths == sorted(lengths)
    assert len(set(lengths)) > 3, "the answer came in pieces"
    expect(page.locator(".waterfall")).to_contain_text("Generating")
    expect(page.locator("#job-figures")).to_contain_text(f"{job['usage']['output_tokens']} tokens")
    expect(page.get_by_text("was the champion of invoice-extractor")).to_be_visible()

    page.get_by_role("link", name="Jobs").first.click()
    row = page.locator(f"tr:has(#open-{job_id})")
    expect(row).to_contain_text("Succeeded")
    expect(row).to_contain_text(answer[:20])
    tab.check()
    page.go_back()
    expect(page.locator("#output")).to_have_text(answer)
    page.get_by_role("button", name="Retry").click()
    page.wait_for_url(lambda url: "/jobs/job_" in url and job_id not in url)
    expect(page.locator("#job-head [role=status]")).to_have_text("Succeeded")
    expect(page.locator("#output")).to_have_text(answer)
    tab.check()

    tab.open(f"/playground?from={job_id}")
    expect(page.locator("#count")).to_contain_text("tokens of")
    page.get_by_role("button", name="Run").click()
    page.wait_for_url("**/playground?job=job_*")
    expect(page.locator(".stats .badge")).to_have_text("Succeeded")
    expect(page.locator(".answers .output")).to_have_text(answer)
    tab.check()
