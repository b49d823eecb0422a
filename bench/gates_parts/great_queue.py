"""A rollback while very many jobs wait for the candidate: how soon all have left it, and whom that delays.

Real processes and services. Nobody runs the jobs: claims are made by this process, as a worker makes them.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from penstock.jobs import lease
from penstock.rollouts import services
from penstock.rollouts.models import Rollout
from sqlalchemy import text
from sqlalchemy.orm import Session

from bench.gates_parts.submits import PROMPT, WARM, have_ready
from bench.gates_parts.switches import OPERATOR, POLICY
from bench.platform_parts.clients import Caller, Latency
from bench.platform_parts.house import MODEL_NAME, House, job_body, until

TENANTS: Final = 50
PAUSE_SECONDS: Final = 0.02
QUIET_SECONDS: Final = 3.0
_FILL: Final = (
    """INSERT INTO tenant (id, name, webhook_secret)
    SELECT 'ten_great_' || at, 'great ' || at, 'x' FROM generate_series(0, :tenants - 1) AS at""",
    """INSERT INTO job (id, tenant_id, model, input, params, seed, deployment_id, model_name, model_version, routing,
        prompt_tokens, job_class, prefix, last_event)
    SELECT 'job_00000000000000000' || lpad(at::text, 9, '0'), 'ten_great_' || at % :tenants, :model,
        '{"prompt": "Invoice 4711 of the bench"}', '{"max_tokens": 8}', at, :candidate, :model, '2',
        jsonb_build_object('rule', 'rollout', 'rollout', CAST(:rollout AS text), 'arm', 'candidate'), 8, 1, at % 50, 1
    FROM generate_series(1, :waiting) AS at""",
    """INSERT INTO event (job_id, number, tenant_id, type, data)
    SELECT id, 1, tenant_id, 'job.queued', '{}' FROM job WHERE deployment_id = :candidate""",
    """INSERT INTO assignment (job_id, rollout_id, stage, step, arm, share, unit)
    SELECT id, :rollout, 'canary', 0, 'candidate', 0.5, 'job' FROM job WHERE deployment_id = :candidate""",
)
_LEFT: Final = text("SELECT count(*) FROM job WHERE deployment_id = :candidate AND state = 'queued'")


@dataclass
class Probe:
    """A thread that does one thing over and over, and how long each took, in seconds."""

    once: Callable[[], object]
    seconds: list[float] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def going(self) -> Iterator[None]:
        """It goes on while the block runs."""
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _run(self) -> None:
        while not self._stop.wait(PAUSE_SECONDS):
            began = time.perf_counter()
            self.once()
            self.seconds.append(time.perf_counter() - began)

    def latency(self) -> dict[str, float]:
        """Since it was last asked."""
        seconds, self.seconds = self.seconds, []
        told = Latency.of(seconds)
        return {"p50": told.p50, "p99": told.p99, "longest": round(1000 * max(seconds), 2), "count": len(seconds)}


def measured(house: House, waiting: int) -> dict[str, Any]:
    """With a front that runs already."""
    with house.database.transaction() as session:
        worker_id = have_ready(session)
        rollout = services.start(session, MODEL_NAME, "2", POLICY, OPERATOR)
        _fill(session, rollout, waiting)
    with house.database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE job, event, assignment"))
    with Caller(house) as caller:
        body = job_body(PROMPT, 8)
        for _ in range(WARM):
            caller.submit(body)
        submits = Probe(lambda: caller.submit(body))
        claims = Probe(lambda: _claim(house, worker_id, rollout.champion_id))
        with submits.going(), claims.going():
            time.sleep(QUIET_SECONDS)
            quiet = {"submit": submits.latency(), "claim": claims.latency()}
            moved = _roll_back(house, rollout)
            return (
                moved
                | {"waiting": waiting, "ms before": quiet}
                | {"ms meanwhile": {"submit": submits.latency(), "claim": claims.latency()}}
            )


def _fill(session: Session, rollout: Rollout, waiting: int) -> None:
    session.flush()
    given = {"tenants": TENANTS, "waiting": waiting, "model": MODEL_NAME, "candidate": rollout.candidate_id}
    for statement in _FILL:
        session.execute(text(statement), given | {"rollout": rollout.id})


def _claim(house: House, worker_id: str, deployment_id: str) -> None:
    with house.database.transaction() as session:
        lease.claim(session, worker_id=worker_id, deployment_id=deployment_id, lease_seconds=3600)


def _roll_back(house: House, rollout: Rollout) -> dict[str, Any]:
    began = time.perf_counter()
    with house.database.transaction() as session:
        services.roll_back(session, rollout.id, OPERATOR, "the bench")
    verdict = time.perf_counter() - began

    def left() -> int:
        with house.database.transaction() as session:
            return int(session.scalar(_LEFT, {"candidate": rollout.candidate_id}) or 0)

    at_once = left()
    until(lambda: left() == 0, "the last job to be moved", pause=0.05)
    return {
        "seconds of the verdict": round(verdict, 2),
        "left by it": at_once,
        "seconds until none is left": round(time.perf_counter() - began, 2),
    }
