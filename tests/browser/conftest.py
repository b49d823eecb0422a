"""Chromium, and the portal in two ways: the whole platform with a real worker, and a site whose worker a test plays.

A page that writes an error to its console, breaks its content security policy or is wider than the screen fails.
"""

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from penstock.app import create_app
from penstock.auth.models import Tenant, User
from penstock.auth.services import Role, create_tenant
from penstock.db import Database
from penstock.embedded.platform import Platform
from penstock.embedded.supervisor import Supervisor
from penstock.ids import new_id
from penstock.jobs.journal import Journal
from penstock.jobs.models import Job
from penstock.registry.models import Deployment
from penstock.settings import Settings
from playwright.sync_api import Browser, ConsoleMessage, Page, Playwright, expect, sync_playwright
from redis import Redis
from werkzeug.serving import make_server

from tests.factories import WordCounter, make_deployment, make_tenant, make_worker, submit_job
from tests.platform.api.conftest import Worker
from tests.platform.portal.conftest import PASSWORD, password_hash
from tests.worker.proxy import Proxy

ROOT = Path(__file__).parent.parent.parent
EMAIL = "ada@example.com"
ADMINISTRATOR = "grace@example.com"
OPERATOR = "olga@example.com"
SCREENS = {"narrow": (390, 844), "wide": (1440, 1000)}
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# What a browser writes for every answer of that status; the test that provokes one names it.
FAILED_LOAD = "Failed to load resource"

WATCH_PAGE = """
addEventListener("securitypolicyviolation",
  (event) => console.error(`CSP: ${event.violatedDirective} ${event.blockedURI}`));
window.shifted = 0;
new PerformanceObserver((list) => list.getEntries().forEach((shift) => {
  if (!shift.hadRecentInput) window.shifted += shift.value;
})).observe({type: "layout-shift", buffered: true});
"""
expect.set_options(timeout=60_000)  # a busy machine is slow, not wrong


def chromium_path() -> str:
    """The browser to test with."""
    names = (os.environ.get("PENSTOCK_TEST_CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if found is None:
        pytest.fail(
            "there is no Chromium: run deploy/install-chromium, or set PENSTOCK_TEST_CHROMIUM to a browser's path"
        )
    return found


@pytest.fixture(scope="session")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as running:
        yield running


@pytest.fixture(scope="session")
def browser(playwright: Playwright) -> Iterator[Browser]:
    """Chromium without a window, with a profile of its own."""
    running = playwright.chromium.launch(executable_path=chromium_path(), args=FLAGS)
    yield running
    running.close()


@dataclass
class Tab:
    """A browser's tab that remembers what went wrong in it."""

    page: Page
    base: str
    complaints: list[str] = field(default_factory=list)
    expected_statuses: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error}"))
        self.page.add_init_script(WATCH_PAGE)

    def open(self, path: str) -> None:
        self.page.goto(self.base + path)

    def sign_in(self, email: str = EMAIL, password: str = PASSWORD) -> None:
        self.sign_in_to("**/jobs**", email, password)

    def sign_in_to(self, address: str, email: str = EMAIL, password: str = PASSWORD) -> None:
        self.page.get_by_label("Email").fill(email)
        self.page.get_by_label("Password").fill(password)
        self.page.get_by_role("button", name="Sign in").click()
        self.page.wait_for_url(address)

    def shifted(self) -> float:
        """How far the page's layout has jumped by itself since it was opened (Cumulative Layout Shift; 0.1 is good)."""
        return float(self.page.evaluate("window.shifted"))

    def check(self) -> None:
        """Fail on whatever went wrong so far, and when the page is wider than its screen."""
        assert self.complaints == [], f"at {self.page.url}"
        wide, screen = self.page.evaluate(
            "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        )
        assert wide <= screen, f"{self.page.url} is {wide} px wide on a screen of {screen} px"

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type not in ("error", "warning"):
            return
        if message.text.startswith(FAILED_LOAD) and any(
            f"status of {code} " in message.text for code in self.expected_statuses
        ):
            return
        self.complaints.append(f"{message.type}: {message.text} ({message.location.get('url')})")


@pytest.fixture
def open_tab(browser: Browser) -> Iterator[Callable[..., Tab]]:
    """Opens a tab of a fresh profile on a site."""
    contexts = []

    def make(base: str, *, screen: str = "wide", scheme: Any = "light", **options: Any) -> Tab:
        width, height = SCREENS[screen]
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, **options)
        context.set_default_timeout(60_000)
        contexts.append(context)
        return Tab(context.new_page(), base)

    yield make
    for context in contexts:
        context.close()


@dataclass(frozen=True)
class Site:
    """The portal in this process behind a line that can be cut, and a worker that the test plays by hand."""

    base: str
    line: Proxy
    database: Database
    tenant: Tenant
    deployment: Deployment
    worker: Worker
    requests: list[tuple[str, str | None]]
    """Paths that browsers asked for, each with its `Last-Event-ID`."""

    def submit(self, **body: Any) -> Job:
        with self.database.transaction() as session:
            return submit_job(session, session.merge(self.tenant, load=False), **body)


@pytest.fixture
def site(settings: Settings, database: Database, redis: Redis) -> Iterator[Site]:
    app = create_app(settings, prompts=WordCounter(), database=database, redis=redis)
    with database.transaction() as session:
        tenant = make_tenant(session)
        session.add(
            User(id=new_id("usr"), tenant_id=tenant.id, email=EMAIL, password_hash=password_hash(), role="member")
        )
        deployment = make_deployment(session)
        row = make_worker(session, deployment)
    worker = Worker(database, Journal(redis, publisher=row.id), row.id, deployment.id)
    requests: list[tuple[str, str | None]] = []
    with serving(app, requests) as port:
        line = Proxy(port)
        yield Site(f"http://127.0.0.1:{line.port}", line, database, tenant, deployment, worker, requests)
        app.extensions["penstock"].stop_streams()
        line.close()
    app.extensions["penstock"].live.join()


@contextmanager
def serving(app: Flask, requests: list[tuple[str, str | None]]) -> Iterator[int]:
    """The application on a free port of loopback; every request is noted."""
    from flask import request

    app.before_request(lambda: requests.append((request.full_path, request.headers.get("Last-Event-ID"))))
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


@dataclass(frozen=True)
class RunningPlatform:
    """Everything that `penstock up` runs, with the demo model and people of each role, whose password is `PASSWORD`.

    The member `EMAIL` and the operator `OPERATOR` are of the first tenant, whose key is `api_key`; the
    administrator `ADMINISTRATOR` has a tenant of their own, in which nothing has happened yet.
    """

    url: str
    api_key: str
    tenant_id: str
    settings: Settings
    state: Path
    supervisor: Supervisor

    @property
    def worker_pid(self) -> int:
        """The worker's process of this moment: one that ends is followed by another."""
        return self.supervisor.processes["worker"]

    @property
    def control_pid(self) -> int:
        return self.supervisor.processes["control"]


@pytest.fixture(scope="package")
def platform() -> Iterator[RunningPlatform]:
    """The one running platform of this folder."""
    with tempfile.TemporaryDirectory(prefix="penstock-browser-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o711)  # under root the database runs as another user, who must get through
        state, models = Path(folder) / "state", {"invoice-extractor": ROOT / "examples/invoices/model"}
        settings = {
            "worker_slots": "8", "engine_threads": "1", "lease_seconds": "60", "webhook_allow_loopback": "true",
        }  # fmt: skip
        with Platform(state, models=models, settings=settings, durable=False) as running:
            first = running.bootstrap
            assert first is not None
            _add_people(running.settings, first.tenant_id)
            yield RunningPlatform(
                running.url, first.api_key, first.tenant_id, running.settings, state, running.services.supervisor
            )


def _add_people(settings: Settings, first_tenant: str) -> None:
    database = Database(settings, pool_size=1)
    with database.transaction() as session:
        customer = create_tenant(session, "Harbour Books").id
        people = (
            (EMAIL, first_tenant, Role.MEMBER), (OPERATOR, first_tenant, Role.OPERATOR),
            (ADMINISTRATOR, customer, Role.ADMIN),
        )  # fmt: skip
        for email, tenant, role in people:
            session.add(User(id=new_id("usr"), tenant_id=tenant, email=email, password_hash=password_hash(), role=role))
    database.close()


@contextmanager
def paused(pid: int) -> Iterator[None]:
    """Stop a process for the length of a `with` block: a page opens before the first token, a queue stays as it is."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
