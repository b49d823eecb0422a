"""The whole house as OpenAI's client meets it: the web process, a worker with its engine, and `openai` before them."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI
from penstock.auth.models import ApiKey, Tenant
from penstock.auth.services import Scope, create_api_key
from penstock.db import Database
from penstock.embedded.ports import choose
from penstock.jobs.models import Job
from penstock.registry.tokenizer import ModelTokenizer
from penstock.settings import Settings
from sqlalchemy import select

from tests.patience import eventually
from tests.platform.registry.tool_templates import HERMES
from tests.worker.conftest import copy_demo_model
from tests.worker.world import World, open_world

GREEDY: dict[str, Any] = {"model": "tiny", "temperature": 0, "extra_body": {"ignore_eos": True}}
CHAT: Any = [{"role": "user", "content": "Invoice 12"}]


@dataclass(frozen=True)
class House:
    """A running platform at `url`, a key for it, and its inside."""

    url: str
    key: str
    world: World
    tokenizer: ModelTokenizer
    folder: Path

    def job(self, job_id: str) -> Job:
        return self.world.jobs.get(job_id)

    def native(self, **body: Any) -> dict[str, Any]:
        """A finished job of the platform's own API."""
        headers = {"Authorization": f"Bearer {self.key}", "Prefer": "wait=60"}
        answer = httpx.post(f"{self.url}/v1/jobs", json={"model": "tiny"} | body, headers=headers, timeout=60)
        assert answer.status_code == 200, answer.text
        document: dict[str, Any] = answer.json()
        return document

    def newest_job(self, model: str = "tiny") -> Job:
        with self.world.database.transaction() as session:
            return session.scalars(select(Job).where(Job.model == model).order_by(Job.id.desc()).limit(1)).one()

    def tenant_id(self) -> str:
        """Whose the key is: pages of examples bring tenants of their own."""
        with self.world.database.transaction() as session:
            return session.scalars(select(ApiKey.tenant_id).where(ApiKey.name == "openai")).one()

    def signal_engines(self, number: int) -> None:
        """To all of them: examples of pages bring a second model, and so an engine."""
        for engine in self.world.worker.children:
            os.kill(engine, number)

    def count_jobs(self) -> int:
        with self.world.database.transaction() as session:
            return len(session.scalars(select(Job.id)).all())

    def ended(self, job_id: str) -> Job:
        return self.world.jobs.finished(job_id)


@pytest.fixture(scope="package")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, whose template also shows tools; without them it says what it always does."""
    folder = copy_demo_model(tmp_path_factory.mktemp("caller"))
    template = folder / "chat_template.jinja"
    called = "tools or (messages | selectattr('tool_calls', 'defined') | list)"
    template.write_text(f"{{% if {called} %}}{HERMES}{{% else %}}{template.read_text()}{{% endif %}}")
    return folder


@pytest.fixture(scope="package")
def house(
    settings: Settings, migrated: Database, model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[House]:
    with open_world(settings, migrated, model_folder, tmp_path_factory.mktemp("worker")) as world:
        with migrated.transaction() as session:
            key = create_api_key(
                session,
                tenant_id=session.scalars(select(Tenant.id)).one(),
                name="openai",
                scopes=(Scope.JOBS_READ, Scope.JOBS_WRITE),
                environment=settings.environment,
            )[1]
        with _web(settings) as url:
            yield House(url, key, world, ModelTokenizer.from_folder(model_folder), model_folder)


@pytest.fixture
def client(house: House) -> Iterator[OpenAI]:
    """OpenAI's own client, which is told where the house is and nothing more."""
    with OpenAI(base_url=f"{house.url}/v1", api_key=house.key, timeout=60) as client:
        yield client


@contextmanager
def _web(settings: Settings) -> Iterator[str]:
    port = choose(None, None, "")
    environment = {
        "PENSTOCK_DATABASE_URL": settings.database_url.get_secret_value(),
        "PENSTOCK_REDIS_URL": settings.redis_url.get_secret_value(),
        "PENSTOCK_SECRET_KEY": settings.secret_key.get_secret_value(),
        "PENSTOCK_ENVIRONMENT": settings.environment,
        "PENSTOCK_WEB_PORT": str(port),
        "PENSTOCK_WEB_THREADS": "16",
        "PENSTOCK_FILES_URL": settings.files_url or "",
        "PENSTOCK_WEBHOOK_ALLOW_LOOPBACK": "true",
    }
    program = "from penstock import web; from penstock.settings import Settings; web.serve(Settings.from_environment())"
    process = subprocess.Popen([sys.executable, "-c", program], env=os.environ | environment)
    url = f"http://127.0.0.1:{port}"
    try:
        eventually(lambda: process.poll() is not None or _answers(url), "the web process")
        yield url
    finally:
        process.kill()
        process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz").is_success
    except httpx.TransportError:
        time.sleep(0.05)
        return False
