"""What a live rollout adds to a submit: two models alike, one with a canary under way, one job of each in turns."""

import time
from datetime import timedelta
from typing import Any, Final

from penstock.clock import utc_now
from penstock.ids import new_id
from penstock.registry.models import LANE_ID, Deployment, Hosting, Worker
from penstock.rollouts import services
from sqlalchemy import select
from sqlalchemy.orm import Session

from bench.gates_parts.switches import OPERATOR, POLICY
from bench.platform_parts.clients import Caller, Latency
from bench.platform_parts.house import DEMO_MODEL, MODEL_NAME, House, add_version, crown, job_body

PLAIN: Final = "invoice-extractor-without-rollout"
WARM: Final = 20
PROMPT: Final = "Invoice 4711 of the bench"


def measured(house: House, submits: int) -> dict[str, Any]:
    """Milliseconds of submits over HTTP, with a front that runs already; nobody takes the jobs."""
    crown(house.database, add_version(house.database, DEMO_MODEL, "1", PLAIN), PLAIN)
    bodies = {"with": job_body(PROMPT, 8), "without": job_body(PROMPT, 8).replace(MODEL_NAME.encode(), PLAIN.encode())}
    seconds: dict[str, list[float]] = {name: [] for name in bodies}
    with house.database.transaction() as session:
        have_ready(session)
        rollout = services.start(session, MODEL_NAME, "2", POLICY, OPERATOR).id
    with Caller(house) as caller:
        for _ in range(WARM + submits):
            for name, body in bodies.items():
                began = time.perf_counter()
                caller.submit(body)
                seconds[name].append(time.perf_counter() - began)
    with house.database.transaction() as session:
        services.abort(session, rollout, OPERATOR, "the bench")
    told = {name: Latency.of(each[WARM:]) for name, each in seconds.items()}
    added = {name: round(getattr(told["with"], name) - getattr(told["without"], name), 3) for name in ("p50", "p99")}
    return {"submits of each": submits, "added ms": added} | {
        f"ms {name} a rollout": {"p50": each.p50, "p95": each.p95, "p99": each.p99} for name, each in told.items()
    }


def have_ready(session: Session) -> str:
    """Both versions are ready on a worker, as far as anybody knows: an unready one would get no share. Its id."""
    worker = Worker(id=new_id("wrk"), hostname="bench", pid=1, device="cpu", slots=1)
    worker.heartbeat_at = utc_now() + timedelta(hours=1)
    session.add(worker)
    session.flush()
    for deployment in session.scalars(select(Deployment).where(Deployment.id != LANE_ID)):
        session.add(Hosting(worker_id=worker.id, deployment_id=deployment.id, state="ready"))
    session.flush()
    return worker.id
