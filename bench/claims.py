"""What a claim costs as the queue grows, and what many at once cost each other, on a real PostgreSQL.

python -m bench.claims [--json PATH]

The peer, in the same run and on the same rows, is the plain query for the same order: every waiting job joined to its
tenant's counter, sorted, the first one locked.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from penstock import __version__
from penstock.clock import utc_now
from penstock.db import Database
from penstock.embedded import EmbeddedServices
from penstock.fairness.places import place_of
from penstock.fairness.turns import NEXT
from penstock.jobs import lease
from penstock.jobs.models import Job
from penstock.jobs.states import JobState
from penstock.migrate import upgrade
from penstock.settings import Settings
from pydantic import SecretStr
from sqlalchemy import text

ROOT = Path(__file__).parent.parent
DEPLOYMENT = "dep_bench"
ROUNDS = 60
PLAIN = """
SELECT job.id FROM job
JOIN tenant ON tenant.id = job.tenant_id
LEFT JOIN fair_share ON fair_share.tenant_id = job.tenant_id AND fair_share.deployment_id = job.deployment_id
WHERE job.deployment_id = :deployment_id AND job.state = 'queued' AND NOT job.held
  AND (job.deadline IS NULL OR job.deadline > now())
ORDER BY job.job_class, coalesce(fair_share.charged, 0), job.tenant_id, job.priority DESC, job.deadline, job.queued_at
LIMIT 1 FOR UPDATE OF job SKIP LOCKED"""


@dataclass(frozen=True)
class Queue:
    """Medians in milliseconds, and pages of PostgreSQL touched, with so many jobs of so many tenants waiting.

    `turn` and `plain` are the queries alone, `claim` the whole transaction, `place_first` and `place_last` what a
    waiting job is told of its place at either end of the queue. Pages do not depend on what else the machine does.
    """

    waiting: int
    tenants: int
    turn_pages: int
    plain_pages: int
    turn_ms: float
    plain_ms: float
    plain_over_turn: float
    claim_ms: float
    claim_p95_ms: float
    place_first_ms: float
    place_last_ms: float


@dataclass(frozen=True)
class Crowd:
    """What so many threads do in a second, each with a connection of its own."""

    threads: int
    claims: float
    finishes_one_tenant: float
    finishes_many_tenants: float


@contextmanager
def empty_database() -> Iterator[Database]:
    """A PostgreSQL in a folder of its own, migrated, durable as in production."""
    with tempfile.TemporaryDirectory(prefix="penstock-bench-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o711)
        with EmbeddedServices(Path(folder) / "state", mlflow=False) as services:
            settings = Settings(
                database_url=SecretStr(services.database_url),
                redis_url=SecretStr(services.redis_url),
                secret_key=SecretStr("only-for-the-bench"),
                database_pool_size=16,
            )
            upgrade(settings)
            database = Database(settings)
            yield database
            database.close()


def fill(database: Database, waiting: int, tenants: int) -> None:
    """Empty the tables, then queue so many jobs, dealt out to the tenants."""
    with database.transaction() as session:
        session.execute(text("TRUNCATE job, tenant, deployment CASCADE"))
        session.execute(
            text(
                "INSERT INTO tenant (id, name, webhook_secret) SELECT 'ten_' || at, 'bench ' || at, 'x' "
                "FROM generate_series(0, :tenants - 1) AS at"
            ),
            {"tenants": tenants},
        )
        session.execute(
            text(
                "INSERT INTO deployment "
                "(id, model_name, model_version, source, manifest, recipe, context_length, digest) "
                "VALUES (:id, 'bench', '1', '/nowhere', '{}', '{}', 256, 'x')"
            ),
            {"id": DEPLOYMENT},
        )
        session.execute(
            text(
                "INSERT INTO fair_share (tenant_id, deployment_id, charged) SELECT id, :id, random() * 1000 FROM tenant"
            ),
            {"id": DEPLOYMENT},
        )
        session.execute(
            text(
                "INSERT INTO job (id, tenant_id, model, input, params, seed, deployment_id, model_name, model_version, "
                "routing, prompt_tokens, job_class, queued_at, prefix) "
                "SELECT 'job_' || lpad(at::text, 9, '0'), 'ten_' || (at % :tenants), 'bench', :input, '{}', at, :id, "
                "'bench', '1', '{}', 100, at % 2, now() - (:waiting - at) * interval '1 ms', at % 50 "
                "FROM generate_series(1, :waiting) AS at"
            ),
            {"waiting": waiting, "tenants": tenants, "id": DEPLOYMENT, "input": json.dumps({"prompt": "word " * 80})},
        )
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE job, fair_share, tenant"))


def claim_one(database: Database, at: int) -> lease.Claim:
    with database.transaction() as session:
        claim = lease.claim(
            session,
            worker_id="wrk_bench",
            deployment_id=DEPLOYMENT,
            lease_seconds=3600,
            recent_prefixes=[at % 50, (at + 1) % 50],
        )
    assert claim is not None, "the bench claims fewer than there are"
    return claim


def milliseconds(work: Callable[[int], object], rounds: int = ROUNDS) -> list[float]:
    """How long each round took, sorted; the first few warm up and are left out."""
    taken = []
    for at in range(rounds + 5):
        started = time.perf_counter()
        work(at)
        taken.append((time.perf_counter() - started) * 1000)
    return sorted(taken[5:])


def query(database: Database, statement: str) -> Callable[[int], object]:
    def ask(_: int) -> object:
        with database.engine.begin() as connection:
            return connection.execute(text(statement), {"deployment_id": DEPLOYMENT, "last_class": 2}).one()

    return ask


def pages(database: Database, statement: str) -> int:
    """How many pages of 8 KiB the statement looks at, as PostgreSQL counts them."""
    with database.engine.begin() as connection:
        explain = text(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}")
        plan = connection.execute(explain, {"deployment_id": DEPLOYMENT, "last_class": 2}).scalar_one()[0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


def place(database: Database, order: str) -> Callable[[int], object]:
    found = text(f"SELECT id FROM job WHERE state = 'queued' ORDER BY job_class {order}, queued_at {order} LIMIT 1")
    with database.transaction() as session:
        job = session.get_one(Job, session.scalar(found))

    def ask(_: int) -> object:
        with database.transaction() as session:
            return place_of(session, job)

    return ask


def measure_queue(database: Database, waiting: int, tenants: int) -> Queue:
    fill(database, waiting, tenants)
    turn = statistics.median(milliseconds(query(database, NEXT)))
    plain = statistics.median(milliseconds(query(database, PLAIN), rounds=15))
    places = [statistics.median(milliseconds(place(database, order), rounds=15)) for order in ("ASC", "DESC")]
    claims = milliseconds(lambda at: claim_one(database, at))
    return Queue(
        waiting,
        tenants,
        pages(database, NEXT),
        pages(database, PLAIN),
        round(turn, 2),
        round(plain, 2),
        round(plain / turn, 1),
        round(statistics.median(claims), 2),
        round(claims[int(len(claims) * 0.95)], 2),
        *(round(each, 2) for each in places),
    )


def measure_crowd(database: Database, threads: int, each: int = 40) -> Crowd:
    """Claims by many threads of one queue; finishes of jobs of one tenant, all charging one row, and of many."""
    rates = []
    for tenants in (1, threads):
        fill(database, threads * each + 200, tenants)
        claims: list[lease.Claim] = []
        took = _at_once(threads, partial(_claim_some, database, claims, each))
        rates.append(threads * each / took)
        took = _at_once(threads, partial(_finish_some, database, claims, threads))
        rates.append(threads * each / took)
    _, one, claiming, many = rates
    return Crowd(threads, round(claiming, 1), round(one, 1), round(many, 1))


def _claim_some(database: Database, claims: list[lease.Claim], count: int, _: int) -> None:
    claims.extend(claim_one(database, at) for at in range(count))


def _finish_some(database: Database, claims: list[lease.Claim], threads: int, nth: int) -> None:
    for claim in claims[nth::threads]:
        finish(database, claim)


def finish(database: Database, claim: lease.Claim) -> None:
    with database.transaction() as session:
        held = lease.Held(claim.job.id, claim.fence)
        lease.finish(session, held, lease.Finish(JobState.SUCCEEDED, [], prompt_tokens=100, untold_tokens=50))


def _at_once(threads: int, work: Callable[[int], None]) -> float:
    """Seconds until all threads are through."""
    started = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work, nth) for nth in range(threads)]:
            done.result()
    return time.perf_counter() - started


def plan(database: Database) -> list[str]:
    """PostgreSQL's plan of a claim, as the queue stands."""
    with database.engine.begin() as connection:
        given = {"deployment_id": DEPLOYMENT, "last_class": 2}
        lines = connection.execute(text(f"EXPLAIN (ANALYZE, COSTS OFF) {NEXT}"), given)
        return [line for (line,) in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=ROOT / "bench" / "results" / "claims.json")
    arguments = parser.parse_args()
    with empty_database() as database:
        queues = []
        for waiting, tenants in ((100, 10), (10_000, 10), (100_000, 1), (100_000, 10), (100_000, 100)):
            queues.append(measure_queue(database, waiting, tenants))
            print(queues[-1], flush=True)
        shown = plan(database)
        crowds = [measure_crowd(database, threads) for threads in (1, 8)]
    print(*crowds, *shown, sep="\n")
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
        "queues": [asdict(queue) for queue in queues],
        "crowds": [asdict(crowd) for crowd in crowds],
        "plan": shown,
    }
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
