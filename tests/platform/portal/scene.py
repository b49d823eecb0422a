"""An installation at work, for the operators' pages: workers, versions, a rollout, dead letters, webhooks, metrics."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any

from penstock.auth.audit import Actor
from penstock.auth.models import Tenant
from penstock.clock import utc_now
from penstock.compressions.models import Compression
from penstock.dead_letters.burial import bury_if_deadly
from penstock.ids import new_id
from penstock.jobs.models import Job
from penstock.registry.models import Deployment, Hosting, RoutingPolicy, Worker
from penstock.replay.models import Comparison, ComparisonState
from penstock.rollouts import lead, services
from penstock.rollouts.evidence import Evidence
from penstock.rollouts.models import GatePoint, GateResult, Rollout
from penstock.rollouts.policy import Policy
from penstock.rollouts.statistics import Sample, Tally
from penstock.webhooks.models import WebhookEndpoint
from sqlalchemy import delete, update
from sqlalchemy.orm import Session

from tests.factories import make_deployment, submit_job
from tests.platform.portal.traffic import write_traffic

STATS = {
    "pages_total": 4096,
    "pages_in_use": 2711,
    "pages_cached": 803,
    "running": 21,
    "max_running": 32,
    "waiting": 3,
    "tokens_generated": 8_412_907,
    "prefix_hits": 5_204_113,
    "prefix_queries": 9_117_420,
    "kv_bytes": 38_654_705_664,
    "weight_bytes": 16_060_522_496,
}


Rollouts = Callable[[Session, Tenant, Actor], str]
SMALL_STATS = STATS | {
    "pages_total": 1024,
    "pages_in_use": 212,
    "running": 2,
    "waiting": 0,
    "tokens_generated": 93_118,
    "kv_bytes": 9_663_676_416,
    "weight_bytes": 4_738_514_944,
}


@dataclass(frozen=True)
class Scene:
    """What there is to see, by id."""

    worker_id: str
    rollout_id: str
    letter_job_id: str
    model: str = "invoice-extractor"


def a_rollout(session: Session, tenant: Tenant, actor: Actor) -> str:
    """One in its canary, with an answer on which its versions differ."""
    rollout_id = _rollout(session, actor)
    _flip(session, tenant, rollout_id)
    return rollout_id


def set_scene(session: Session, tenant: Tenant, actor: Actor, rollouts: Rollouts = a_rollout) -> Scene:
    """Everything, in one transaction; `rollouts` makes those, and says which of them is looked at."""
    champion = make_deployment(session, "invoice-extractor", "1")
    candidate = make_deployment(session, "invoice-extractor", "2", champion=False)
    candidate.recipe = {"scheme": "int4", "method": "gptq"}
    policy = session.get_one(RoutingPolicy, "invoice-extractor")
    policy.challenger_id, policy.reason = candidate.id, "the alias champion names version 1"
    for version in (champion, candidate):
        version.digest = sha256(version.id.encode()).hexdigest()
    worker = _workers(session, champion, candidate)
    _evaluation(session, tenant, candidate)
    letters = [_letter(session, tenant, code) for code in ("engine_crashed", "forward_failed", "forward_failed")]
    _endpoint(session, tenant)
    write_traffic(session, utc_now())
    return Scene(worker.id, rollouts(session, tenant, actor), letters[0].id)


def finished(session: Session, job: Job, state: str, **values: Any) -> Job:
    """The job as one that has ended now."""
    now = utc_now()
    times = {"started_at": now, "finished_at": now, "state": state}
    session.execute(update(Job).where(Job.id == job.id).values(state="running", lease_holder="wrk", fence=1))
    session.execute(update(Job).where(Job.id == job.id).values(lease_holder=None, **(times | values)))
    session.refresh(job)
    return job


def _workers(session: Session, *versions: Deployment) -> Worker:
    """One that hosts both versions, and one that fell silent."""
    works, silent = _worker("gpu-7", -600), _worker("gpu-9", 340)  # alive for as long as somebody looks
    session.add_all((works, silent))
    session.flush()
    for version, stats in zip(versions, (STATS, SMALL_STATS), strict=True):
        since = utc_now() - timedelta(hours=8)
        row = {"worker_id": works.id, "deployment_id": version.id, "free_slots": 11, "ready_at": since}
        session.add(Hosting(**row, state="ready", stats=stats))
    session.flush()
    return works


def _worker(hostname: str, silent_seconds: int) -> Worker:
    heard = utc_now() - timedelta(seconds=silent_seconds)
    return Worker(
        id=new_id("wrk"),
        hostname=hostname,
        pid=4121,
        device="cuda:0 H200",
        slots=32,
        started_at=heard - timedelta(hours=9),
        heartbeat_at=heard,
        last_claim_at=heard - timedelta(seconds=2),
    )


def _evaluation(session: Session, tenant: Tenant, candidate: Deployment) -> None:
    job = submit_job(session, tenant, model="invoice-extractor")
    version = {"name": "invoice-extractor", "version": "2"}
    figures = {
        "divergence": {"mean": {"value": 0.0041}, "same_top": {"value": 0.9874}},
        "flips": {"share": {"value": 0.004}},
        "positions": 60_120,
        "candidate": {"bytes": 291},
        "against": {"bytes": 1000},
    }
    session.add(
        Compression(
            job_id=job.id,
            model=version,
            against=version | {"version": "1"},
            made={"name": "invoice-extractor", "figures": figures},
            made_at=utc_now(),
            published={"version": "2", "created": False},
        )
    )


def _letter(session: Session, tenant: Tenant, code: str) -> Job:
    error = {"code": code, "message": "the engine's process ended with signal 11"}
    job = finished(session, submit_job(session, tenant, model="invoice-extractor"), "failed", error=error)
    bury_if_deadly(session, job)
    return job


def _endpoint(session: Session, tenant: Tenant) -> None:
    now = utc_now()
    session.add(
        WebhookEndpoint(
            id=new_id("whe"),
            tenant_id=tenant.id,
            url="https://hooks.example.com/penstock",
            events=["job.succeeded"],
            secret="whsec_dGVzdHMtb25seS10ZXN0cy1vbmx5",
            failures=17,
            failing_since=now - timedelta(hours=3),
        )
    )


def _rollout(session: Session, actor: Any) -> str:
    """In its canary, judged six times in an hour, on evidence that grows."""
    rollout = services.start(session, "invoice-extractor", "2", Policy(offline=None, shadow=None), actor)
    holding = lead.take(session, lead.ROLLOUTS, "a scene", 60)
    assert holding is not None
    for number, units in enumerate((12, 24, 40, 60, 84, 110)):
        fence = session.get_one(Rollout, rollout.id).fence
        services.conclude(session, holding, rollout.id, fence, _evidence(units), may_promote=False)
        judged = session.get_one(GateResult, (rollout.id, "canary", 0), populate_existing=True).judgement
        session.execute(delete(GatePoint).where(GatePoint.at > utc_now() - timedelta(minutes=2)))
        _point(session, rollout.id, utc_now() - timedelta(minutes=60 - 10 * number), judged)
    lead.release(session, holding)
    return rollout.id


def _point(session: Session, rollout_id: str, at: datetime, judged: dict[str, Any]) -> None:
    guards = {reason["name"]: {"verdict": reason["verdict"], **reason["figures"]} for reason in judged["reasons"]}
    told = {"verdict": judged["verdict"], "jobs_needed": judged["jobs_needed"], "guards": guards}
    session.add(GatePoint(rollout_id=rollout_id, state="canary", step=0, at=at, **told))


def _flip(session: Session, tenant: Tenant, rollout_id: str) -> None:
    """An answer of the champion that the candidate has scored, and would have ended otherwise."""
    output = {"choices": [{"text": "total 12", "token_ids": [20, 33, 41, 57, 60]}]}
    job = finished(session, submit_job(session, tenant, model="invoice-extractor"), "succeeded", output=output)
    likely = [{"token_id": 57, "probability": 0.48}, {"token_id": 58, "probability": 0.31}]
    parting = {
        "position": 3,
        "token_id": 57,
        "probability": 0.22,
        "kld": 0.41,
        "reference": likely,
        "candidate": [{"token_id": 58, "probability": 0.55}, {"token_id": 57, "probability": 0.22}],
    }
    figures = {"tokens": 5, "mean_kld": 0.09, "largest_kld": 0.41, "disagreement": 0.2, "mean_rank": 1.3}
    scored = figures | {"logprob_difference": -0.2, "parting": parting, "worst": parting}
    kept = {"mean_kld": 0.09, "disagreement": 0.2, "scored": scored, "state": ComparisonState.DONE}
    session.add(Comparison(id=new_id("cmp"), source_id=job.id, rollout_id=rollout_id, **kept))


def _evidence(units: int) -> Evidence:
    seen = Tally().plus(0.01, candidate=units, champion=units * 99)
    differences = Sample(((-1, units // 30), (0, units - units // 15), (1, units // 30)))
    return Evidence(
        seconds=float(units * 10),
        step_units=units,
        units=seen,
        failures=Tally().plus(0.01, candidate=units // 30, champion=units * 3),
        pairs={"errors": differences, "slow": differences},
    )
