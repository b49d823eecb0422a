"""The lane of jobs that work on files: held by signs of life, resumed where it was, ended when it is to end.

A stand-in does the tool's part (`stand_in_tool`), and the test the control process's. That the real tool does it, and
MLflow gets it, is shown in `tests/platform/registry/test_compressions.py`.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from penstock.auth.models import Tenant
from penstock.clock import utc_now
from penstock.compressions.models import Compression
from penstock.compressions.publishing import withdraw
from penstock.compressions.schemas import asked_by
from penstock.compressions.services import Asked, Submission, submit
from penstock.compressions.versions import find
from penstock.db import Database
from penstock.jobs import services as jobs
from penstock.jobs.journal import Journal
from penstock.jobs.models import Event, Job
from penstock.jobs.reaper import reap
from penstock.jobs.states import JobState
from penstock.registry.models import Deployment
from penstock.settings import Settings
from penstock_worker.file_lane import FileLane, sweep
from penstock_worker.tool_process import ToolProcess
from redis import Redis
from sqlalchemy import select, update

from tests.patience import eventually
from tests.worker.conftest import Jobs, is_alive

pytestmark = pytest.mark.usefixtures("deployment")
TOOL = "tests.worker.stand_in_tool"
SUCCEEDED = {"version": "2", "created": True, "run_id": "run"}


@dataclass
class World:
    """A lane whose turns are taken by hand, and what looks at it."""

    settings: Settings
    database: Database
    redis: Redis
    tenant: Tenant
    root: Path

    def lane(self, **settings: Any) -> FileLane:
        journal = Journal(self.redis, "test")
        return FileLane(self.settings.model_copy(update=settings), "wrk_1", self.database, journal, tool=TOOL)

    def submit(self, kind: str = "quantize", **asked: Any) -> str:
        stored = {"recipe": {"scheme": "int4"}, "evaluate": False} if kind == "quantize" else {"against": "tiny"}
        with self.database.transaction() as session:
            deadline = asked.pop("deadline", None)
            request = asked_by(kind, stored | asked, "tiny", deadline=deadline)
            model = find(session, "tiny")
            assert model is not None
            against = model if kind == "evaluate" else None
            return submit(session, Asked(request, model, against), Submission(self.tenant.id, 100)).id

    def job(self, job_id: str) -> Job:
        with self.database.transaction() as session:
            return session.get_one(Job, job_id)

    def events(self, job_id: str) -> list[Event]:
        with self.database.transaction() as session:
            return list(session.scalars(select(Event).where(Event.job_id == job_id).order_by(Event.number)))

    def told(self, job_id: str) -> list[str]:
        return [f"{event.data['stage']} {event.data['done']}" for event in self.events(job_id) if "stage" in event.data]

    def publish(self, job_id: str, **published: Any) -> dict[str, Any]:
        """What a control process does, once there is something; what was made."""

        def made() -> dict[str, Any] | None:
            with self.database.transaction() as session:
                row = session.get_one(Compression, job_id)
                if row.made is not None:
                    row.published = SUCCEEDED | {"source": row.made["folder"]} | published
                return row.made

        return eventually(made, "something that was made")

    @contextmanager
    def at_work(self, lane: FileLane) -> Iterator[None]:
        """One turn of the lane, in a thread as a worker has it."""
        thread = threading.Thread(target=lane.work_once)
        thread.start()
        yield
        thread.join(30)
        assert not thread.is_alive()

    def running(self, job_id: str) -> None:
        eventually(lambda: "quantize 1" in self.told(job_id), "the tool's first word")


@pytest.fixture
def world(
    settings: Settings,
    database: Database,
    redis: Redis,
    tenant: Tenant,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> World:
    monkeypatch.setenv("PLAN", "done")
    root = tmp_path / "models"
    update = {"models_folder": str(root), "lease_seconds": 30.0}
    return World(settings.model_copy(update=update), database, redis, tenant, root)


def tool_of(job_id: str) -> int:
    """The tool's process."""
    found = subprocess.run(["pgrep", "-f", f"stand_in_tool.*{job_id}"], capture_output=True, text=True, check=False)
    (pid,) = found.stdout.split()
    return int(pid)


def test_a_model_is_made_kept_and_told(world: World) -> None:
    job_id = world.submit()
    with world.at_work(world.lane()):
        made = world.publish(job_id)
    job = world.job(job_id)
    kept = world.root / "tiny" / job_id
    assert job.state == "succeeded"
    assert job.output == SUCCEEDED | {
        "model": "tiny", "against": "tiny:1", "source": str(kept), "bytes": 25, "source_bytes": 100, "ratio": 0.25,
        "recipe": {"scheme": "int4"}, "figures": None,
    }  # fmt: skip
    assert (made["folder"], made["name"], made["alias"]) == (str(kept), "tiny", None)
    assert (kept / "config.json").exists()
    assert not list((world.root / ".making").iterdir())
    assert world.told(job_id)[-2:] == ["quantize 2", "register 0"]
    assert (job.account or {})["device_seconds"] > 0


def test_the_same_files_as_before_are_not_kept_twice(world: World) -> None:
    job_id = world.submit()
    with world.at_work(world.lane()):
        world.publish(job_id, source="/elsewhere", created=False)
    assert (world.job(job_id).output or {})["created"] is False
    assert not (world.root / "tiny" / job_id).exists()


def test_an_evaluation_makes_figures_of_the_jobs_text(world: World, jobs: Jobs) -> None:
    for number in range(3):
        finish_by_hand(world, jobs.submit(f"Invoice {number}"))
    job_id = world.submit("evaluate", data={"from": "jobs", "count": 2})
    with world.at_work(world.lane()):
        made = world.publish(job_id, created=False)
    assert made["folder"] is None
    assert (world.job(job_id).output or {})["figures"] == {"sequences": 2, "candidate": {"bytes": 25}}


def finish_by_hand(world: World, job_id: str) -> None:
    """As if an engine had served it."""
    with world.database.transaction() as session:
        session.execute(update(Job).where(Job.id == job_id).values(state="running", lease_holder="x", fence=1))
    output = {"choices": [{"index": 0, "text": " paid", "token_ids": [5], "finish_reason": "stop"}]}
    done = {"state": "succeeded", "lease_holder": None, "finished_at": utc_now(), "output": output}
    with world.database.transaction() as session:
        session.execute(update(Job).where(Job.id == job_id).values(done))


def test_a_tool_that_dies_is_gone_on_with(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAN", "die")
    job_id, lane = world.submit(), world.lane()
    lane.work_once()
    requeued = world.events(job_id)[-1]
    assert (requeued.type, requeued.data["outcome"]) == ("job.requeued", "crashed_alone")
    assert "SIGKILL" in requeued.data["reason"]
    with world.at_work(lane):
        world.publish(job_id)
    assert world.job(job_id).state == "succeeded"
    assert [event.data["what"] for event in world.events(job_id) if "stage" in event.data][-2] == "resumed"


def test_a_tool_that_dies_again_and_again_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAN", "hang")
    job_id, lane = world.submit(), world.lane(max_own_crashes=2, engine_stall_seconds=0.5)
    assert lane.work_once()
    assert world.job(job_id).state == "queued"
    assert lane.work_once()
    job = world.job(job_id)
    assert (job.state, (job.error or {})["code"]) == ("failed", "tool_crashed")
    assert "stood still for 0.5 s" in (job.error or {})["message"]
    assert not (world.root / ".making" / job_id).exists()


def test_what_the_tool_refuses_fails_with_its_words(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAN", "fail")
    job_id = world.submit()
    world.lane().work_once()
    assert world.job(job_id).error == {"code": "source_unusable", "message": "cannot be read"}


@pytest.mark.parametrize("how", ["cancelled", "expired", "handed back", "lost"])
def test_a_running_tool_ends_with_its_job(world: World, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setenv("PLAN", "wait")
    job_id, lane = world.submit(deadline=utc_now() + timedelta(hours=1)), world.lane()
    ends: dict[str, Callable[[Any], object]] = {
        "cancelled": lambda session: jobs.cancel(session, world.tenant.id, job_id),
        "expired": lambda session: session.execute(update(Job).values(deadline=utc_now())),
        "handed back": lambda _session: lane.close(),
        "lost": lambda session: session.execute(update(Job).values(fence=Job.fence + 1)),
    }
    with world.at_work(lane):
        world.running(job_id)
        tool = tool_of(job_id)
        with world.database.transaction() as session:
            ends[how](session)
    assert not is_alive(tool)
    job, partial = world.job(job_id), world.root / ".making" / job_id / "model.partial"
    assert job.state == {"handed back": "queued", "lost": "running"}.get(how, how)
    assert partial.exists() == (how in ("handed back", "lost"))


def test_a_workers_sudden_end_takes_the_tool_with_it(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PLAN", "wait")
    source, out = tmp_path, tmp_path / "out_job_x"
    program = (
        "import os, sys; from pathlib import Path; from penstock_worker.tool_process import ToolProcess\n"
        f"tool = ToolProcess(['quantize', {str(source)!r}, '--out', {str(out)!r}], Path({str(tmp_path / 'log')!r}), 2, "
        f"{TOOL!r})\n"
        "while not tool.take(): pass\n"
        "print(tool.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    parent = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert parent.returncode == -signal.SIGKILL, parent.stderr
    eventually(lambda: not is_alive(int(parent.stdout)), "the tool's end")


def test_the_tool_has_the_lowest_priority(
    world: World, monkeypatch: pytest.MonkeyPatch, deployment: Deployment, tmp_path: Path
) -> None:
    monkeypatch.setenv("PLAN", "wait")
    out = tmp_path / "out"
    tool = ToolProcess(["quantize", deployment.source, "--out", str(out)], tmp_path / "log", 2, TOOL)
    try:
        eventually(tool.take, "its first word")
        assert os.getpriority(os.PRIO_PROCESS, tool.pid) == 19
    finally:
        tool.stop()
    assert tool.take()[-1]["code"] == "stopped"


def test_a_job_whose_worker_fell_silent_is_taken_back_and_gone_on_with(world: World) -> None:
    job_id = world.submit()
    lane = world.lane()
    claim = lane._claim()
    assert claim is not None
    with world.database.transaction() as session:
        session.execute(update(Job).values(lease_expires_at=utc_now() - timedelta(seconds=1)))
        (taken,) = reap(session, lambda _held: [], max_own_crashes=3)
    assert (taken.id, taken.state) == (job_id, "queued")
    with world.at_work(world.lane()):
        world.publish(job_id)
    assert (world.job(job_id).state, world.job(job_id).runs) == ("succeeded", 2)


def test_what_was_made_before_a_crash_is_not_made_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id, lane = world.submit(), world.lane()
    with world.at_work(lane):
        eventually(lambda: "register 0" in world.told(job_id), "the end of the work")
        lane.close()  # before a control process came to it
    assert world.job(job_id).state == "queued"
    monkeypatch.setenv("PLAN", "fail")  # it must not be asked again
    with world.at_work(world.lane()):
        world.publish(job_id)
    assert world.job(job_id).state == "succeeded"


def test_what_the_registry_refuses_fails_and_leaves_no_folder(world: World) -> None:
    job_id = world.submit()
    problem = {"code": "model_folder_invalid", "message": "is not there"}
    with world.at_work(world.lane()):
        eventually(lambda: "register 0" in world.told(job_id), "the end of the work")
        with world.database.transaction() as session:
            session.execute(update(Compression).values(problem=problem))
    assert (world.job(job_id).state, world.job(job_id).error) == ("failed", problem)
    assert not (world.root / "tiny" / job_id).exists()


def test_what_waits_for_the_registry_can_still_be_cancelled(world: World) -> None:
    job_id = world.submit()
    with world.at_work(world.lane()):
        eventually(lambda: "register 0" in world.told(job_id), "the end of the work")
        with world.database.transaction() as session:
            row = session.get_one(Compression, job_id, with_for_update=True)
            assert not withdraw_elsewhere(world, job_id), "it is being published"
            assert row.made is not None
        with world.database.transaction() as session:
            jobs.cancel(session, world.tenant.id, job_id)
    assert world.job(job_id).state == "cancelled"
    with world.database.transaction() as session:
        assert session.get_one(Compression, job_id).made is None
    assert not (world.root / "tiny" / job_id).exists()


def withdraw_elsewhere(world: World, job_id: str) -> bool:
    with world.database.transaction() as session:
        return withdraw(session, job_id)


def test_a_model_whose_files_have_changed_is_refused(world: World, deployment: Deployment) -> None:
    job_id = world.submit()
    with world.database.transaction() as session:
        row = session.get_one(Compression, job_id)
        row.model = row.model | {"manifest": row.model["manifest"] | {"config.json": "0" * 64}}
    world.lane().work_once()
    assert (world.job(job_id).error or {})["code"] == "model_folder_invalid"


def test_what_dead_workers_left_is_swept(world: World) -> None:
    job_id = world.submit()
    for name in (job_id, "job_gone"):
        (world.root / ".making" / name).mkdir(parents=True)
    sweep(world.database, world.root)
    assert [path.name for path in (world.root / ".making").iterdir()] == [job_id]
    with world.database.transaction() as session:
        jobs.cancel(session, world.tenant.id, job_id)
    sweep(world.database, world.root)
    assert not list((world.root / ".making").iterdir())
    assert world.job(job_id).state == JobState.CANCELLED
