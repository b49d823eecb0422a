"""Every call of the API has an example in docs/api/*.md, which answers as it says there."""

import json
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from penstock.auth.models import Tenant
from penstock.auth.services import Scope, create_api_key
from penstock.bulk.tending import BulkTender
from penstock.bulk.work import JOB_WORKS
from penstock.db import Database
from penstock.dead_letters.burial import bury_if_deadly
from penstock.dead_letters.models import DeadLetter
from penstock.ids import new_id
from penstock.registry.models import Deployment, RoutingPolicy, Worker
from penstock.replay.tending import ReplayTender
from penstock.rollouts.evidence import Evidence
from penstock.rollouts.lead import ROLLOUTS, release, take
from penstock.rollouts.models import Rollout
from penstock.rollouts.services import conclude
from penstock.rollouts.statistics import Sample, Tally
from penstock.rollups.keeping import keep
from penstock.usage.budgets import set_budget
from penstock.webhooks.models import WebhookDelivery
from penstock.webhooks.sender import Sender
from penstock.webhooks.tasks import deliver
from sqlalchemy import select
from sqlalchemy.orm import Session

from tests.conftest import ROOT
from tests.factories import make_deployment, make_tenant, make_worker, submit_job
from tests.platform.batches.serving import workshop_of
from tests.platform.openai_api.conftest import House
from tests.platform.openai_api.curl_examples import (
    Call,
    Example,
    call_of,
    differences,
    examples_of,
    files_of,
    fits,
    name_id,
)
from tests.platform.openai_api.tending import tended
from tests.platform.webhooks.receiver import Receiver, receiving

PAGES: Final = sorted((ROOT / "docs/api").glob("*.md"))
UNLISTED: Final = {("GET", path) for path in ("/healthz", "/readyz", "/metrics", "/openapi.json", "/docs")}
"""Routes that the API's own document leaves out."""

PATIENCE_SECONDS: Final = 30.0
SENDER: Final = Sender(timeout_seconds=5.0, allow_loopback=True)


@dataclass(frozen=True)
class Answer:
    """How an answer differs from what is shown; an `early` one may come to be like that."""

    problems: list[str]
    refused: bool = False

    @property
    def early(self) -> bool:
        return bool(self.problems) and not self.refused


class Reader:
    """Does what one page says, as a tenant of its own that may do everything."""

    def __init__(self, house: House, receiver: Receiver, folder: Path, running: ExitStack) -> None:
        self._house, self._folder, self._running = house, folder, running
        self._theirs = {"invoice-extractor": "tiny", "https://example.com/hook": receiver.url}
        with house.world.database.transaction() as session:
            tenant = make_tenant(session)
            scopes, environment = tuple(Scope), house.world.settings.environment
            key = create_api_key(session, tenant_id=tenant.id, name="docs", scopes=scopes, environment=environment)[1]
            set_budget(session, tenant.id, "EUR", Decimal("100.00"))
        self._known = {"PENSTOCK_URL": house.url, "PENSTOCK_API_KEY": key, "TENANT": tenant.id}
        self._client = running.enter_context(httpx.Client(timeout=PATIENCE_SECONDS))
        self._tended = False

    def prepare(self, page: Path) -> None:
        """Make what the page takes for granted: a worker that nobody misses, jobs that were given up, two versions."""
        if "rollout-docs" in page.read_text():
            self._running.enter_context(two_versions(self._house.world.database, "rollout-docs"))
        if "$WORKER" not in page.read_text():
            return
        worker = Worker(id=new_id("wrk"), hostname="gpu-7", pid=4242, device="cuda:0", slots=64)
        with self._house.world.database.transaction() as session:
            session.add(worker)
            letters = [self._given_up(session) for _ in range(2)]
        self._known |= {"WORKER": worker.id, "LETTER": letters[0], "OTHER_LETTER": letters[1]}
        self._known |= {"DEPLOYMENT": self._house.world.deployment.id}

    def _given_up(self, session: Session) -> str:
        job = submit_job(session, session.get_one(Tenant, self._known["TENANT"]))
        job.state, job.finished_at = "failed", job.created_at
        message = "the model fails on it alone with RuntimeError: shape mismatch"
        job.error = {"code": "forward_failed", "message": message}
        session.flush()
        bury_if_deadly(session, job)
        return session.scalars(select(DeadLetter.id).where(DeadLetter.job_id == job.id)).one()

    def take_file(self, name: str, content: str) -> None:
        (self._folder / name).write_text(self._ours(content))

    def problems(self, example: Example) -> list[str]:
        """How the answer differs from what is shown. What is got may take its time to become that."""
        call = call_of(self._ours(example.command), self._known, self._folder)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (answer := self._try(example, call)).early and call.method == "GET" and time.monotonic() < deadline:
            time.sleep(0.05)
        return [f"{example.place}: {problem}" for problem in answer.problems]

    def _try(self, example: Example, call: Call) -> Answer:
        self._control(call)
        shown = self._ours(example.answer)
        with self._client.stream(**call.options()) as response:
            if response.status_code not in example.statuses:
                return Answer([f"answered {response.status_code}: {response.read().decode()}"], refused=True)
            if example.kind == "text":
                text = heard(response, shown.strip())
                return Answer([] if fits(shown.strip(), text.strip()) else [f"answered {text!r}"])
            response.read()
        name_id(response.json(), self._known)
        return Answer(list(differences(json.loads(shown), response.json())))

    def _control(self, call: Call) -> None:
        """What the control process would have done by now: it delivers, and runs batches that are looked at."""
        if call.path.startswith("/v1/webhook-deliveries"):
            with self._house.world.database.transaction() as session:
                waiting = session.scalars(select(WebhookDelivery.id).where(WebhookDelivery.status == "waiting")).all()
            for delivery_id in waiting:
                deliver(self._house.world.database, SENDER, delivery_id, lease_seconds=30)
        if call.method == "GET" and call.path.startswith("/v1/bulk/"):
            world = self._house.world
            tender = BulkTender(workshop_of(world.settings, world.database, world.redis), JOB_WORKS)
            while tender.work_once():
                pass
        if call.path.startswith("/v1/admin/metrics"):
            with self._house.world.database.transaction() as session:
                keep(session)
        if call.method == "GET" and call.path.startswith("/v1/admin/replays/"):
            replays = ReplayTender(self._house.world.database, sweep_seconds=1)
            while replays.work_once():
                pass
        if call.method == "GET" and call.path == f"/v1/admin/rollouts/{self._known.get('ROLLOUT')}":
            judge(self._house.world.database, self._known["ROLLOUT"])
        if call.method == "GET" and call.path.startswith("/v1/batches/") and not self._tended:
            self._tended = True
            self._running.enter_context(tended(self._house))

    def _ours(self, text: str) -> str:
        for shown, real in self._theirs.items():
            text = text.replace(shown, real)
        return text


@contextmanager
def two_versions(database: Database, model: str) -> Iterator[None]:
    """A champion, and a version that a worker has ready; afterwards the model takes no jobs."""
    with database.transaction() as session:
        found = [make_deployment(session, model, version, champion=version == "1") for version in ("1", "2")]
        make_worker(session, found[1])
    yield
    with database.transaction() as session:
        session.delete(session.get_one(RoutingPolicy, model))
        for deployment in found:
            session.get_one(Deployment, deployment.id).state = "retired"


def judge(database: Database, rollout_id: str) -> None:
    """What the controller does with jobs that have ended."""
    seen = Evidence(
        step_units=40,
        units=Tally().plus(0.1, 40, 360),
        failures=Tally().plus(0.1, 1, 3),
        pairs={"errors": Sample(((0, 39), (1000, 1)))},
    )
    with database.transaction() as session:
        lead = take(session, ROLLOUTS, "docs", 60)
        assert lead is not None
        assert conclude(session, lead, rollout_id, session.get_one(Rollout, rollout_id).fence, seen)
        release(session, lead)


def heard(response: httpx.Response, wanted: str) -> str:
    """The text, or as much of one that does not end as is shown."""
    text = ""
    for piece in response.iter_text():
        text += piece.replace("\r\n", "\n")
        if wanted.endswith("…") and fits(wanted, text.strip()):
            break
    return text


@pytest.fixture
def running() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_example_answers_as_it_says(page: Path, house: House, tmp_path: Path, running: ExitStack) -> None:
    reader = Reader(house, running.enter_context(receiving()), tmp_path, running)
    reader.prepare(page)
    for name, content in files_of(page).items():
        reader.take_file(name, content)

    assert [problem for example in examples_of(page) for problem in reader.problems(example)] == []


def test_every_route_has_an_example(house: House) -> None:
    spec: Any = httpx.get(f"{house.url}/openapi.json").json()
    routes = {(method.upper(), path) for path, item in spec["paths"].items() for method in item} | UNLISTED
    shown = {example_route(example, routes) for page in PAGES for example in examples_of(page)}

    missing = sorted(routes - shown, key=lambda route: route[::-1])
    assert not missing, (
        f"no example of {missing}: write one on the page of docs/api/ where it belongs, a block ```sh with the curl "
        "and a block ```json 200 with its answer (docs/api.md says how, under Examples)"
    )


def example_route(example: Example, routes: set[tuple[str, str]]) -> tuple[str, str]:
    """Which route the example calls."""
    names = dict.fromkeys(re.findall(r"\$([A-Z_]+)", example.command), "x") | {"PENSTOCK_URL": "http://x"}
    call = call_of(example.command, names | {"PENSTOCK_API_KEY": "x"}, Path())
    fitting = [
        path
        for method, path in routes
        if method == call.method and re.fullmatch(re.sub("{.*?}", "[^/]+", path), call.path)
    ]
    assert fitting, f"{example.place} calls {call.method} {call.path}, which is no route"
    return call.method, min(fitting, key=lambda path: path.count("{"))


def test_a_page_that_says_otherwise_is_found_out() -> None:
    shown = {"id": "job_…", "n": 1, "list": [{"a": None}], "more": ["x", "…"], "any": "…", "on": True}
    right = {"id": "job_01", "n": 1, "list": [{"a": None, "b": 2}], "more": ["x", "y"], "any": 5, "on": True}
    assert list(differences(shown, right)) == []
    for name, wrong in {"id": "key_01", "n": 2, "list": [{}], "more": ["y"], "on": 1}.items():
        assert len(list(differences(shown, right | {name: wrong}))) == 1, name
    assert len(list(differences(shown, right | {"list": []}))) == 1
