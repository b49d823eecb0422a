"""How long a job takes from the request to its queued answer, through the real web process, PostgreSQL and tokenizer.

python -m bench.submit [--jobs N] [--clients N] [--json PATH]

The peer, in the same run, is `GET /healthz`: the same HTTP stack with nothing behind it.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
from penstock import __version__
from penstock.auth.services import bootstrap
from penstock.clock import utc_now
from penstock.db import Database
from penstock.embedded import EmbeddedServices
from penstock.embedded.ports import choose
from penstock.ids import new_id
from penstock.migrate import upgrade
from penstock.registry.folder import describe
from penstock.registry.models import Deployment, RoutingPolicy
from penstock.settings import Settings
from pydantic import SecretStr

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "examples" / "invoices" / "model"
PROMPT = (ROOT / "examples" / "invoices" / "samples" / "01.txt").read_text(encoding="utf-8")
_SERVE = "from penstock.settings import Settings; from penstock.web import serve; serve(Settings.from_environment())"


@dataclass(frozen=True)
class Latency:
    """Milliseconds."""

    p50: float
    p95: float
    p99: float
    per_second: float

    @classmethod
    def of(cls, seconds: list[float], wall: float) -> "Latency":
        cuts = statistics.quantiles(seconds, n=100)
        p50, p95, p99 = (round(1000 * cuts[percent - 1], 2) for percent in (50, 95, 99))
        return cls(p50, p95, p99, round(len(seconds) / wall, 1))


def register_model(database: Database) -> None:
    """The shipped demo model, as the registry would have it; no worker is needed to queue."""
    folder = describe(MODEL)
    with database.transaction() as session:
        deployment = Deployment(
            id=new_id("dep"),
            model_name="invoice-extractor",
            model_version="1",
            source=str(folder.path),
            manifest=folder.manifest,
            digest=folder.digest,
            recipe=folder.recipe,
            context_length=folder.context_length,
        )
        session.add(deployment)
        session.flush()
        session.add(
            RoutingPolicy(
                model_name="invoice-extractor",
                champion_id=deployment.id,
                champion_since=utc_now(),
                reason="made by a benchmark",
            )
        )


@contextmanager
def running_web(services: EmbeddedServices) -> Iterator[tuple[str, str]]:
    """A migrated database and a web process over it; gives its address and a key."""
    settings = Settings(
        database_url=SecretStr(services.database_url),
        redis_url=SecretStr(services.redis_url),
        secret_key=SecretStr(os.urandom(32).hex()),
        web_port=choose(None, None, ""),
        log_level="warning",
    )
    upgrade(settings)
    database = Database(settings)
    register_model(database)
    with database.transaction() as session:
        made = bootstrap(session, environment=settings.environment)
    assert made is not None
    database.close()
    process = subprocess.Popen([sys.executable, "-c", _SERVE], env=os.environ | environment(settings))
    address = f"http://127.0.0.1:{settings.web_port}"
    try:
        wait_for(address, process)
        yield address, made.api_key
    finally:
        process.terminate()
        process.wait()


def environment(settings: Settings) -> dict[str, str]:
    """The variables that give a process these settings."""
    return {
        "PENSTOCK_DATABASE_URL": settings.database_url.get_secret_value(),
        "PENSTOCK_REDIS_URL": settings.redis_url.get_secret_value(),
        "PENSTOCK_SECRET_KEY": settings.secret_key.get_secret_value(),
        "PENSTOCK_WEB_PORT": str(settings.web_port),
        "PENSTOCK_LOG_LEVEL": settings.log_level,
    }


def wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    """Until the web process answers."""
    while process.poll() is None:
        try:
            httpx.get(f"{address}/healthz").raise_for_status()
        except httpx.TransportError:
            time.sleep(0.05)
        else:
            return
    raise SystemExit("the web process ended")


def measure(
    address: str, key: str, count: int, clients: int, call: Callable[[httpx.Client], httpx.Response]
) -> Latency:
    """`count` calls shared by so many clients, each on a connection of its own; the first ten of each warm it up."""

    def work(_: int) -> list[float]:
        with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {key}"}, timeout=30) as client:
            return [timed(client, call) for _ in range(10 + count // clients)][10:]

    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        seconds = [one for many in pool.map(work, range(clients)) for one in many]
    return Latency.of(seconds, time.perf_counter() - began)


def timed(client: httpx.Client, call: Callable[[httpx.Client], httpx.Response]) -> float:
    """Seconds of one call that must succeed."""
    began = time.perf_counter()
    call(client).raise_for_status()
    return time.perf_counter() - began


def submit(client: httpx.Client) -> httpx.Response:
    """A real invoice, as the demo sends it."""
    return client.post("/v1/jobs", json={"model": "invoice-extractor", "input": {"prompt": PROMPT}})


def health(client: httpx.Client) -> httpx.Response:
    """The peer."""
    return client.get("/healthz")


def main() -> None:
    """Measure one client, then several at once, and print or write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=400)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
        Path(folder).chmod(0o711)  # under root the database runs as another user, who must get through
        with (
            EmbeddedServices(Path(folder) / "state", mlflow=False) as services,
            running_web(services) as (address, key),
        ):
            figures = {
                "submit, 1 client": measure(address, key, chosen.jobs, 1, submit),
                "peer, 1 client": measure(address, key, chosen.jobs, 1, health),
                f"submit, {chosen.clients} clients": measure(address, key, chosen.jobs, chosen.clients, submit),
                f"peer, {chosen.clients} clients": measure(address, key, chosen.jobs, chosen.clients, health),
            }
    report(figures, chosen.json)


def report(figures: dict[str, Latency], path: Path | None) -> None:
    """Print the figures with their ratios; write them with the circumstances."""
    for name, latency in figures.items():
        peer = figures[name.replace("submit", "peer")]
        print(f"{name:20} p50 {latency.p50:7.2f} ms  p95 {latency.p95:7.2f}  p99 {latency.p99:7.2f}  "
              f"{latency.per_second:7.1f}/s  {latency.p50 / peer.p50:5.1f} x peer")  # fmt: skip
    if path is not None:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
        circumstances = {
            "commit": commit.stdout.strip(),
            "penstock": __version__,
            "python": platform.python_version(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before the end",
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(circumstances | {name: asdict(value) for name, value in figures.items()}, indent=2))


if __name__ == "__main__":
    main()
