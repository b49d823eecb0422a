"""Many tabs of one browser: to one server it opens six connections, and a stream keeps one for as long as it lasts."""

from collections.abc import Callable

from playwright.sync_api import Page, expect

from tests.browser.conftest import Site, Tab
from tests.browser.test_live_page import follow

TABS = 8
TURN = """(hidden) => {
  Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
  document.dispatchEvent(new Event("visibilitychange"));
}"""
"""What a browser with a window tells a page; without one it calls every tab visible."""


def test_the_eighth_job_opens_and_the_first_goes_on_where_it_was(site: Site, open_tab: Callable[..., Tab]) -> None:
    tab = follow(site, open_tab)
    site.worker.claim()
    site.worker.write("a", "b")
    output = tab.page.locator("#output")
    expect(output).to_have_text("ab")

    pages: list[Page] = [tab.page]
    for _ in range(1, TABS):
        pages[-1].evaluate(TURN, True)
        pages.append(tab.page.context.new_page())
        pages[-1].goto(f"{site.base}/jobs/{site.submit().id}")
        expect(pages[-1].get_by_text("Waiting in the queue")).to_be_visible()

    site.worker.write("c")
    pages[-1].evaluate(TURN, True)
    with tab.page.expect_request("**/events?after=2.2"):
        tab.page.evaluate(TURN, False)
    expect(output).to_have_text("abc")
    site.worker.finish()
    expect(tab.page.locator("#job-head [role=status]")).to_have_text("Succeeded")
    expect(output).to_have_text("abc")
    tab.check()
