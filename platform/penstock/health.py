"""`/healthz` (the process lives), `/readyz` (what it stands on answers) and `/metrics`. None of them needs a key."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

from apiflask import APIBlueprint
from flask import Response, jsonify
from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import Select, func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from penstock.fairness.claimable import claimable
from penstock.jobs.models import Job
from penstock.jobs.states import JobClass
from penstock.outbox.models import OutboxMessage
from penstock.registry.hosting_services import HEARTBEAT_SECONDS, HostingState
from penstock.registry.models import Hosting, Worker
from penstock.services import Services, current_services

OUTBOX_LAG_SECONDS: Final = 30.0
STALLED_SECONDS: Final = 60.0
_MOST_COUNTED: Final = 1000
_METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_OK: Final = {"ok": True}


def healthz() -> Response:
    """The process answers."""
    return jsonify({"status": "ok"})


def readyz() -> tuple[Response, int]:
    """What the process stands on, each with the reason where it is not well.

    `unready` (503) only without the database: without Redis jobs are still accepted, so a load balancer must not turn
    away those who submit. Redis, a lagging outbox or work that nobody takes make it `degraded` (200).
    """
    found = standing(current_services())
    status = "unready" if not found["database"]["ok"] else "ready"
    if status == "ready" and not all(part["ok"] for part in found.values()):
        status = "degraded"
    return jsonify({"status": status, "parts": found}), 503 if status == "unready" else 200


def standing(services: Services) -> dict[str, dict[str, Any]]:
    """Each part that the process stands on: `ok`, and the `reason` where it is not."""
    found = {"database": _asked(services.database.ping), "redis": _asked(lambda: _ping(services.redis))}
    if found["database"]["ok"]:
        with services.database.transaction() as session:
            found |= {"outbox": _outbox(session), "consumption": _consumption(session)}
    return found


def metrics() -> Response:
    """Prometheus's text format."""
    return Response(current_services().metrics.exposition(), content_type=_METRICS_TYPE)


def blueprint() -> APIBlueprint:
    """The three routes. They are no part of the API's document."""
    routes = APIBlueprint("health", __name__, enable_openapi=False)
    for path, view in (("/healthz", healthz), ("/readyz", readyz), ("/metrics", metrics)):
        routes.add_url_rule(path, view_func=view, methods=["GET"])
    return routes


def _asked(question: Callable[[], object]) -> dict[str, Any]:
    try:
        question()
    except (SQLAlchemyError, RedisError, OSError) as error:
        return {"ok": False, "reason": f"does not answer ({type(error).__name__})"}
    return _OK


def _ping(redis: Redis) -> None:
    redis.ping()


def _outbox(session: Session) -> dict[str, Any]:
    first = select(func.extract("epoch", func.now() - OutboxMessage.created_at)).order_by(OutboxMessage.id).limit(1)
    age = session.scalar(first) or 0
    if age <= OUTBOX_LAG_SECONDS:
        return _OK
    waiting = _up_to(session, select(OutboxMessage.id))
    return {"ok": False, "reason": f"{waiting} messages wait, the oldest for {age:.0f} s: does a control process run?"}


def _consumption(session: Session) -> dict[str, Any]:
    """Jobs wait for long although live workers that host their model have room and claim nothing."""
    long_ago = func.now() - timedelta(seconds=STALLED_SECONDS)
    idle = select(Hosting.deployment_id).where(
        Hosting.state == HostingState.READY,
        Hosting.free_slots > 0,
        Worker.id == Hosting.worker_id,
        Worker.draining.is_(False),
        Worker.heartbeat_at > func.now() - timedelta(seconds=HEARTBEAT_SECONDS),
        func.coalesce(Worker.last_claim_at, Worker.started_at) < long_ago,
    )
    deployments = session.scalars(idle.distinct()).all()
    late = select(Job.id).where(
        Job.deployment_id.in_(deployments),
        claimable(),
        Job.job_class < JobClass.SHADOW.value,  # which wait for as long as there is other work
        Job.queued_at < long_ago,
    )
    if not deployments or not (stalled := _up_to(session, late)):
        return _OK
    return {
        "ok": False,
        "reason": f"{stalled} jobs have waited over {STALLED_SECONDS:.0f} s beside workers with free slots",
    }


def _up_to(session: Session, rows: Select[Any]) -> str:
    """How many there are, counted no further than is worth telling; empty when there is none."""
    found = session.scalar(select(func.count()).select_from(rows.limit(_MOST_COUNTED).subquery())) or 0
    return f"{_MOST_COUNTED} or more" if found == _MOST_COUNTED else str(found or "")
