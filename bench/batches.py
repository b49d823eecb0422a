"""How much memory a large batch takes in the web process (files come and go) and in control (lines become jobs).

python -m bench.batches [--lines N] [--minutes M] [--json PATH]

Real services and processes; only the worker is none: it claims jobs and finishes them with a short answer each. After
the minutes the batch is cancelled, and its files tell of the lines that were not reached as well. The figures are peaks
of resident memory, looked at ten times a second, of the process of each kind that does the work.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from penstock import Client, __version__
from penstock.auth.services import bootstrap
from penstock.client import Batch
from penstock.db import Database
from penstock.embedded import EmbeddedServices
from penstock.embedded.ports import choose
from penstock.ids import new_id
from penstock.jobs import lease
from penstock.jobs.journal import JournalEntry
from penstock.jobs.lease import Finish, Held
from penstock.jobs.states import JobState
from penstock.migrate import upgrade
from penstock.registry.models import Deployment, Hosting, Worker
from penstock.settings import Settings
from pydantic import SecretStr
from sqlalchemy import func, select, update

from bench.submit import PROMPT, ROOT, environment, register_model, wait_for

TARGET_MEBIBYTES = 200
_ANSWER_TOKENS = 16
_CLAIMED_AT_ONCE = 10
_LOOK_SECONDS = 0.1


@dataclass
class Memory:
    """Peaks of resident memory in MiB, by phase and kind of process."""

    processes: dict[str, subprocess.Popen[bytes]]
    phase: str = "idle"
    peaks: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Count what is seen to that phase."""
        self.phase, began = phase, time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = round(time.perf_counter() - began, 1)
            self._look_once()

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Look ten times a second while the block runs."""
        thread = threading.Thread(target=self._look)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _look(self) -> None:
        while not self._stop.wait(_LOOK_SECONDS):
            self._look_once()

    def _look_once(self) -> None:
        known = self.peaks.setdefault(self.phase, {})
        for kind, process in self.processes.items():
            known[kind] = max(known.get(kind, 0.0), _largest(process.pid))


def _largest(pid: int) -> float:
    """MiB of the process that does the work: of a web process its child, which alone serves, else itself."""
    parent = psutil.Process(pid)
    working = parent.children(recursive=True) or [parent]
    return round(max(one.memory_info().rss for one in working) / 2**20, 1)


class NullWorker:
    """Claims jobs and finishes them, a few a transaction, without generating anything."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.finished = 0
        with database.transaction() as session:
            self._deployment_id = session.scalars(select(Deployment.id)).one()
            self._id = new_id("wrk")
            session.add(Worker(id=self._id, hostname="bench", pid=os.getpid(), device="none", slots=_CLAIMED_AT_ONCE))
            session.flush()
            session.add(Hosting(worker_id=self._id, deployment_id=self._deployment_id, state="ready"))

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set."""
        while not stop.is_set():
            done = self._work_once()
            self.finished += done
            if not done:
                stop.wait(0.05)

    def _work_once(self) -> int:
        done = 0
        with self._database.transaction() as session:
            session.execute(update(Worker).values(heartbeat_at=func.now()))
            while done < _CLAIMED_AT_ONCE:
                claim = lease.claim(session, worker_id=self._id, deployment_id=self._deployment_id, lease_seconds=60)
                if claim is None:
                    break
                lease.finish(session, Held(claim.job.id, claim.fence), _end(claim.job.prompt_tokens or 0, claim.fence))
                done += 1
        return done


def _end(prompt_tokens: int, fence: int) -> Finish:
    tokens = [JournalEntry(0, position, 5, " word", None, fence) for position in range(_ANSWER_TOKENS)]
    last = JournalEntry(0, _ANSWER_TOKENS, None, "", None, fence, "stop")
    return Finish(JobState.SUCCEEDED, [*tokens, last], prompt_tokens=prompt_tokens)


def write_input(path: Path, lines: int) -> None:
    """A real invoice on each line, as a chat."""
    with path.open("w", encoding="utf-8") as out:
        for number in range(lines):
            body = {
                "model": "invoice-extractor",
                "messages": [{"role": "user", "content": PROMPT}],
                "max_tokens": _ANSWER_TOKENS,
            }
            line = {"custom_id": f"line-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            out.write(json.dumps(line) + "\n")


@contextmanager
def running(settings: Settings) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """A web and a control process."""
    variables = os.environ | environment(settings) | {"PENSTOCK_FILES_URL": settings.files_url or ""}
    commands = {name: [sys.executable, "-m", "penstock", name] for name in ("web", "control")}
    processes = {name: subprocess.Popen(command, env=variables) for name, command in commands.items()}
    try:
        wait_for(f"http://127.0.0.1:{settings.web_port}", processes["web"])
        yield processes
    finally:
        for process in processes.values():
            process.terminate()
        for process in processes.values():
            process.wait()


def measure(client: Client, memory: Memory, source: Path, target: Path, minutes: float) -> Batch:
    """Upload, run to the end or for so many minutes, and download both ways; `target` gets both files."""
    deadline = time.monotonic() + 60 * minutes
    with memory.during("upload"):
        uploaded = client.files.upload(source)
    batch = client.batches.create(uploaded.id, endpoint="/v1/chat/completions")
    with memory.during("validation"):
        while client.batches.get(batch.id).status == "validating":
            time.sleep(0.2)
    with memory.during("expansion"):
        while (now := client.batches.get(batch.id)).lines.unsubmitted and time.monotonic() < deadline:
            print(f"{now.lines.done} of {now.lines.total} done, {now.lines.waiting} wait", file=sys.stderr, flush=True)
            time.sleep(5)
    if now.lines.unsubmitted:
        client.batches.cancel(batch.id)
    with memory.during("settling and files"):
        done = client.batches.wait(batch.id)
    with memory.during("download"), target.open("wb") as out:
        for file_id in filter(None, (done.output_file_id, done.error_file_id)):
            out.write(client.files.read(file_id))
    with memory.during("results"):
        assert sum(1 for _ in client.batches.results(batch.id)) == done.lines.total
    return done


def main() -> None:
    """Measure, and print or write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=50_000)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as name, ExitStack() as open_:
        folder = Path(name)
        folder.chmod(0o711)  # under root the database runs as another user, who must get through
        services = open_.enter_context(EmbeddedServices(folder / "state", mlflow=False, durable=False))
        settings = Settings(
            database_url=SecretStr(services.database_url),
            redis_url=SecretStr(services.redis_url),
            secret_key=SecretStr(os.urandom(32).hex()),
            web_port=choose(None, None, ""),
            log_level="warning",
            files_url=str(folder / "files"),
        )
        report(*_run(settings, folder, chosen, open_), chosen.json)


def _run(settings: Settings, folder: Path, chosen: argparse.Namespace, open_: ExitStack) -> tuple[Memory, Batch, int]:
    upgrade(settings)
    database = Database(settings)
    open_.callback(database.close)
    register_model(database)
    with database.transaction() as session:
        made = bootstrap(session, environment=settings.environment)
    assert made is not None
    source, target = folder / "lines.jsonl", folder / "answers.jsonl"
    write_input(source, chosen.lines)
    memory = Memory(open_.enter_context(running(settings)))
    open_.enter_context(memory.looking())
    time.sleep(2)  # idle
    worker, stop = NullWorker(database), threading.Event()
    thread = threading.Thread(target=worker.run, args=(stop,))
    thread.start()
    open_.callback(thread.join)
    open_.callback(stop.set)
    client = open_.enter_context(Client(f"http://127.0.0.1:{settings.web_port}", made.api_key))
    done = measure(client, memory, source, target, chosen.minutes)
    assert target.read_bytes().count(b"\n") == done.lines.total == chosen.lines
    return memory, done, source.stat().st_size


def report(memory: Memory, done: Batch, size: int, path: Path | None) -> None:
    """Print the peaks; write them with the circumstances."""
    for phase, peaks in memory.peaks.items():
        told = "  ".join(f"{kind} {mebibytes:6.1f} MiB" for kind, mebibytes in peaks.items())
        print(f"{phase:20} {memory.seconds.get(phase, 0):8.1f} s  {told}")
    if path is None:
        return
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    circumstances = {
        "commit": commit.stdout.strip(),
        "penstock": __version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "input_bytes": size,
        "lines": done.lines.model_dump(),
        "target_mebibytes": TARGET_MEBIBYTES,
    }
    figures = {"peak_mebibytes": memory.peaks, "seconds": memory.seconds}
    path.write_text(json.dumps(circumstances | figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
