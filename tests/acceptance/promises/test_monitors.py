"""What watches Celery applications watches ours: Flower, and whatever reads Celery's events, inspection and queues."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from celery import Celery
from penstock.broker import CONTROL_QUEUE, SERVE_TASK, make_celery, serve_queue
from penstock.embedded.ports import choose
from penstock.jobs.models import Job
from penstock.jobs.states import JobState
from penstock.registry.models import Worker
from sqlalchemy import select

from tests.acceptance.promises.house import SHORT, House
from tests.patience import eventually

pytestmark = pytest.mark.drill


@contextmanager
def flower(house: House, log: Path) -> Iterator[httpx.Client]:
    """Flower, as anybody starts it, and a client of its API."""
    port = choose(None, None, "")
    broker = house.settings.redis_url.get_secret_value()
    command = [sys.executable, "-m", "celery", f"--broker={broker}", "flower", f"--port={port}", "--address=127.0.0.1"]
    told = os.environ | {"FLOWER_UNAUTHENTICATED_API": "true"}
    with (
        log.open("wb") as output,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client,
        subprocess.Popen(command, env=told, stdout=output, stderr=output) as process,
    ):
        try:
            eventually(lambda: process.poll() is not None or answers(client), "Flower")
            yield client
        finally:
            process.kill()
            print(log.read_text())


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/healthcheck").is_success
    except httpx.TransportError:
        return False


def test_flower_sees_workers_their_slots_and_what_they_run(house: House, tmp_path: Path) -> None:
    house.staff(1)
    eventually(lambda: at_rest(house), "the ends of what other tests left")
    with flower(house, tmp_path / "flower.log") as client:
        name = f"{worker_id(house)}@penstock"

        def looks() -> dict[str, Any] | None:
            known: dict[str, dict[str, Any]] = client.get("/api/workers", params={"refresh": 1, "status": 0}).json()
            return known if "stats" in known.get(name, {}) else None

        worker = eventually(looks, "the worker and what it says")[name]
        assert worker["stats"]["pool"]["max-concurrency"] == 8
        assert [queue["name"] for queue in worker["active_queues"]] == [serve_queue(house.deployment.id)]
        assert worker["registered"] == [SERVE_TASK]
        eventually(lambda: client.get("/api/workers", params={"status": 1}).json().get(name), "its heartbeat")

        with closing(make_celery(house.settings)) as app:
            eventually(lambda: app.control.enable_events(reply=True), "its word that it tells of tasks")
            # A task that began before it did would take the job without a word.
            eventually(lambda: active(app, name) == [], "the ends of earlier tasks")
            with house.engines_stopped():
                job_id = house.submit(params=SHORT)
                eventually(lambda: house.jobs.get(job_id).state == "running", "a task that took it")
                # Others may look in vain meanwhile; the one that stays is the one that has the job.
                (task_id,) = eventually(lambda: only(active(app, name)), "its task alone")
                running = eventually(lambda: tasks(client, "STARTED").get(task_id), "its task")
        assert (running["name"], running["worker"]) == (SERVE_TASK, name)
        assert house.deployment.id in running["args"]
        house.finished(job_id)
        done = eventually(lambda: tasks(client, "SUCCESS").get(running["uuid"]), "its end")
        # Whoever sends tells of it after it has sent: a free worker may have told of the task before.
        assert done["sent"] <= done["succeeded"]
        assert done["received"] <= done["started"] <= done["succeeded"]
        lengths = client.get("/api/queues/length").json()["active_queues"]
        assert {"name": serve_queue(house.deployment.id), "messages": 0} in lengths
        assert any(queue["name"] == CONTROL_QUEUE for queue in lengths)


def at_rest(house: House) -> bool:
    with house.database.transaction() as session:
        return all(JobState(state).final for state in session.scalars(select(Job.state).distinct()))


def active(app: Celery, worker: str) -> list[str] | None:
    """The ids of the tasks that run in it; None when it does not answer in time."""
    answer: dict[str, list[dict[str, Any]]] = app.control.inspect([worker]).active() or {}
    return [task["id"] for task in answer[worker]] if worker in answer else None


def only(found: list[str] | None) -> list[str] | None:
    return found if found is not None and len(found) == 1 else None


def tasks(client: httpx.Client, state: str) -> dict[str, dict[str, Any]]:
    """Those in that state, by their ids."""
    found: dict[str, dict[str, Any]] = client.get("/api/tasks", params={"state": state}).json()
    return found


def worker_id(house: House) -> str:
    with house.database.transaction() as session:
        return session.scalars(select(Worker.id).where(Worker.pid == house.workers[0].pid)).one()
