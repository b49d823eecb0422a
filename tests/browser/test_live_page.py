"""A job's page while the job lives: what it shows, and that nothing a network or a model does can spoil it."""

from collections.abc import Callable

from penstock.jobs import lease
from penstock.jobs.journal import Append, JournalEntry
from penstock.jobs.states import JobState
from playwright.sync_api import expect

from tests.browser.conftest import Site, Tab

OpenTab = Callable[..., Tab]


def follow(site: Site, open_tab: OpenTab, **options: str) -> Tab:
    """A signed-in tab on the page of a new job that waits."""
    tab = open_tab(site.base, **options)
    tab.open("/")
    tab.sign_in()
    tab.open(f"/jobs/{site.submit().id}")
    expect(tab.page.get_by_text("Waiting in the queue")).to_be_visible()
    return tab


def test_a_job_from_queue_to_end_without_a_reload(site: Site, open_tab: OpenTab) -> None:
    tab = follow(site, open_tab)
    page = tab.page
    page.evaluate("window.sameDocument = true")
    output, status = page.locator("#output"), page.locator("#job-head [role=status]")
    expect(status).to_have_text("Queued")
    site.worker.claim()
    expect(status).to_have_text("Running")
    site.worker.write("one ", "two ")
    expect(output).to_have_text("one two ")
    site.worker.write("three")
    expect(output).to_have_text("one two three")
    site.worker.finish()
    expect(status).to_have_text("Succeeded")
    expect(page.get_by_text("The model ended its answer.")).to_be_visible()
    expect(page.get_by_role("button", name="Retry")).to_be_visible()
    expect(page.locator(".waterfall")).to_contain_text("Queued")
    expect(page.locator("#job-figures")).to_contain_text("3 tokens")
    assert page.evaluate("window.sameDocument") is True
    tab.check()


def test_choices_stand_in_their_order_whoever_speaks_first(site: Site, open_tab: OpenTab) -> None:
    tab = follow(site, open_tab)
    choices = tab.page.locator("#output .choice")
    held = site.worker.claim()
    said = [(2, "third"), (0, "first"), (1, "second")]
    site.worker.entries = [JournalEntry(choice, 0, 9, text, None, held.fence) for choice, text in said]
    site.worker.journal.append([Append(held.job_id, held.fence, 0, site.worker.entries)])
    expect(choices).to_have_text(["first", "second", "third"])
    site.worker.finish()
    expect(tab.page.locator("#job-head [role=status]")).to_have_text("Succeeded")
    tab.page.reload()
    expect(choices).to_have_text(["first", "second", "third"])


def test_a_broken_connection_resumes_at_the_exact_token(site: Site, open_tab: OpenTab) -> None:
    tab = follow(site, open_tab)
    output = tab.page.locator("#output")
    site.worker.claim()
    site.worker.write("a", "b")
    expect(output).to_have_text("ab")
    site.line.cut()
    site.worker.write("c", "d")
    site.line.mend()
    expect(output).to_have_text("abcd")
    site.worker.finish()
    expect(tab.page.locator("#job-head [role=status]")).to_have_text("Succeeded")
    expect(output).to_have_text("abcd")
    resumed = [last_id for path, last_id in site.requests if "/events" in path and last_id]
    assert "2.2" in resumed, "the browser went on after the second token of the second event"


def test_a_server_that_refuses_the_stream_for_a_while_is_asked_again(site: Site, open_tab: OpenTab) -> None:
    tab = follow(site, open_tab)
    tab.expected_statuses.add(503)
    site.worker.claim()
    site.worker.write("a", "b")
    expect(tab.page.locator("#output")).to_have_text("ab")
    refused = []

    def refuse(route: object) -> None:
        refused.append(route)
        route.fulfill(status=503, body="no") if len(refused) == 1 else route.continue_()  # type: ignore[attr-defined]

    tab.page.route("**/events*", refuse)
    site.line.cut()
    site.line.mend()
    site.worker.write("c")
    expect(tab.page.locator("#output")).to_have_text("abc")
    assert any("after=2.2" in path for path, _ in site.requests)


def test_a_rewind_takes_back_what_was_lost_and_nothing_else(site: Site, open_tab: OpenTab) -> None:
    tab = follow(site, open_tab)
    output = tab.page.locator("#output")
    held = site.worker.claim()
    site.worker.write("keep ", "lost ", "lost")
    expect(output).to_have_text("keep lost lost")
    with site.database.transaction() as session:
        lease.note_rewind(session, held, 1)
    site.worker.entries = site.worker.entries[:1]
    site.worker.journal.rewrite(held.job_id, held.fence, site.worker.entries)
    site.worker.journal.announce([held.job_id])
    expect(output).to_have_text("keep ")
    site.worker.write("again")
    expect(output).to_have_text("keep again")
    tab.check()


def test_what_a_model_writes_is_never_markup(site: Site, open_tab: OpenTab) -> None:
    tab = follow(site, open_tab)
    hostile = "<img src=x onerror=alert(1)><script>alert(2)</script>&lt;"
    said = hostile + hostile
    site.worker.claim()
    site.worker.write(hostile, *hostile)  # in one token, and a character at a time
    output = tab.page.locator("#output")
    expect(output).to_have_text(said)
    site.worker.finish()
    expect(tab.page.get_by_role("button", name="Retry")).to_be_visible()
    expect(output).to_have_text(said)
    tab.page.reload()
    expect(output).to_have_text(said)
    assert tab.page.locator("#output img, #output script").count() == 0
    tab.check()


def test_cancel_from_the_page_keeps_what_there_is(site: Site, open_tab: OpenTab) -> None:
    tab = follow(site, open_tab)
    site.worker.claim()
    site.worker.write("so far")
    expect(tab.page.locator("#output")).to_have_text("so far")
    tab.page.get_by_role("button", name="Cancel").click()
    expect(tab.page.locator("#job-head [role=status]")).to_have_text("Cancelling")
    site.worker.finish(JobState.CANCELLED)
    expect(tab.page.locator("#job-head [role=status]")).to_have_text("Cancelled")
    expect(tab.page.locator("#output")).to_have_text("so far")
    tab.check()


def test_the_list_follows_its_jobs(site: Site, open_tab: OpenTab) -> None:
    tab = open_tab(site.base)
    tab.open("/jobs")
    tab.sign_in()
    expect(tab.page.get_by_text("No jobs yet")).to_be_visible()
    job = site.submit()
    row = tab.page.locator(f"tr:has(#open-{job.id})")
    expect(row).to_contain_text("Queued")
    tab.page.locator(f"#open-{job.id}").focus()
    site.worker.claim()
    expect(row).to_contain_text("Running")
    site.worker.write("done now")
    site.worker.finish()
    expect(row).to_contain_text("Succeeded")
    expect(row).to_contain_text("done now")
    assert tab.page.evaluate("document.activeElement.id") == f"open-{job.id}", "new rows keep the reader's place"
    tab.check()


def test_a_session_that_ended_elsewhere_leads_to_the_sign_in(site: Site, open_tab: OpenTab) -> None:
    tab = open_tab(site.base)
    tab.expected_statuses.add(401)
    site.submit()
    tab.open("/jobs")
    tab.sign_in()
    tab.page.context.clear_cookies()
    tab.page.wait_for_url("**/sign-in")
    tab.check()
