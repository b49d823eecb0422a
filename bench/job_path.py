"""From submit to claim, first token and end, one job at a time on the whole platform; and what the idle platform holds.

python -m bench.job_path [--jobs N] [--json PATH]

The peer, in the same run and on the same Redis, is the bare handoff that no queue can do without: LPUSH by one
thread, BRPOP by another.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import psutil
from penstock import Client, __version__
from penstock.broker import make_redis
from penstock.clock import utc_now
from penstock.embedded.platform import Platform
from penstock.settings import Settings

ROOT = Path(__file__).parent.parent
INVOICES = ROOT / "examples" / "invoices"
IDLE_SECONDS = 10.0


@dataclass(frozen=True)
class Result:
    """Milliseconds are medians over `jobs`, by the database's clock; memory is PSS in MiB, by process."""

    jobs: int
    claim_ms: float
    claim_p95_ms: float
    first_token_ms: float
    total_ms: float
    redis_handoff_ms: float
    claim_over_handoff: float
    idle_mib: dict[str, int]
    idle_total_mib: int


def measure(jobs: int) -> Result:
    """Start the platform in a folder of its own, let it idle, then submit one job after the other."""
    with tempfile.TemporaryDirectory(prefix="penstock-bench-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o711)
        with Platform(Path(folder) / "state", models={"invoices": INVOICES / "model"}) as running:
            assert running.bootstrap is not None
            time.sleep(IDLE_SECONDS)
            idle = idle_memory()
            with Client(running.url, running.bootstrap.api_key) as client:
                spans = [one_job(client, sample) for sample in _prompts(jobs)]
            handoff = redis_handoff(running.settings, jobs)
    claims = sorted(claim for claim, _, _ in spans)
    claim = statistics.median(claims)
    return Result(
        jobs=jobs,
        claim_ms=round(claim, 1),
        claim_p95_ms=round(claims[int(len(claims) * 0.95)], 1),
        first_token_ms=round(statistics.median(first for _, first, _ in spans), 1),
        total_ms=round(statistics.median(total for _, _, total in spans), 1),
        redis_handoff_ms=round(handoff, 2),
        claim_over_handoff=round(claim / handoff, 1),
        idle_mib=idle,
        idle_total_mib=sum(idle.values()),
    )


def one_job(client: Client, text: str) -> tuple[float, float, float]:
    """Milliseconds from the job's creation to its claim, its first token and its end."""
    submitted = client.jobs.submit(
        model="invoices", messages=[{"role": "user", "content": text}], params={"temperature": 0.0}
    )
    job = client.jobs.wait(submitted.id, timeout=60)

    def since_creation(moment: datetime | None) -> float:
        assert moment is not None, job.to_json()
        return (moment - job.created_at).total_seconds() * 1000

    return since_creation(job.started_at), since_creation(job.first_token_at), since_creation(job.finished_at)


def redis_handoff(settings: Settings, rounds: int) -> float:
    """Median milliseconds from LPUSH to the waiting BRPOP of another thread."""
    redis = make_redis(settings)
    waits: list[float] = []

    def take() -> None:
        for _ in range(rounds):
            taken = redis.brpop(["bench"])
            assert taken is not None  # it waits for ever
            waits.append((time.perf_counter() - float(taken[1])) * 1000)

    taker = threading.Thread(target=take)
    taker.start()
    for _ in range(rounds):
        time.sleep(0.01)
        redis.lpush("bench", repr(time.perf_counter()))
    taker.join()
    redis.close()
    return statistics.median(waits)


def idle_memory() -> dict[str, int]:
    """PSS in MiB of every process of the platform, under its most telling word."""
    held: dict[str, int] = {}
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        name = _name(process)
        held[name] = held.get(name, 0) + process.memory_full_info().pss
    return {name: pss >> 20 for name, pss in sorted(held.items())}


def _name(process: psutil.Process) -> str:
    words = " ".join(process.cmdline())
    known = {
        "engine_process": "engine",
        "penstock web": "web",
        "penstock control": "control",
        "penstock worker": "worker",
        "mlflow": "mlflow",
        "redis-server": "redis",
        "postgres": "postgres",
    }
    return "supervisor" if process.pid == os.getpid() else next((known[word] for word in known if word in words), words)


def _prompts(count: int) -> list[str]:
    samples = [path.read_text(encoding="utf-8") for path in sorted((INVOICES / "samples").glob("*.txt"))]
    return [f"{samples[at % len(samples)]}note {at}\n" for at in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--json", type=Path, default=ROOT / "bench" / "results" / "job-path.json")
    arguments = parser.parse_args()
    result = measure(arguments.jobs)
    for name, value in asdict(result).items():
        print(f"{name:>20}  {value}")
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    record = {
        "measured_at": utc_now().isoformat(timespec="seconds"),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "penstock": __version__,
        "commit": commit.stdout.strip(),
        "load_average": os.getloadavg()[0],
        **asdict(result),
    }
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
