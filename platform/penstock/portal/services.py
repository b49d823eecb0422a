"""What the portal reads beyond `jobs.services`: the models to choose from, and all that a job's page shows."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from penstock.feedback import services as feedback
from penstock.feedback.models import Feedback
from penstock.jobs import services as jobs
from penstock.jobs.events import events_after
from penstock.jobs.models import Event, Job, JobRun
from penstock.jobs.standing import Standing, standing_of
from penstock.portal.timeline import Waterfall, waterfall
from penstock.registry.catalogue import list_models
from penstock.registry.models import Deployment, Hosting, RoutingPolicy, Worker
from penstock.webhooks import replays
from penstock.webhooks.models import WebhookAttempt, WebhookDelivery

_MOST_TOLD: Final = 20


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """A model that takes jobs, the version its champion alias names, and whether a worker has it ready."""

    name: str
    version: str
    context_length: int
    state: str
    detail: str


@dataclass(frozen=True, slots=True)
class Answer:
    """A job as the playground shows it, and why it waits where it does."""

    job: Job
    waiting: Standing | None


@dataclass(frozen=True, slots=True)
class Sent:
    """An event of a job on its way to an address, with its attempts."""

    delivery: WebhookDelivery
    attempts: Sequence[WebhookAttempt]


@dataclass(frozen=True, slots=True)
class JobPage:
    """One job with everything around it, read in one transaction."""

    job: Job
    runs: Sequence[JobRun]
    events: Sequence[Event]
    waterfall: Waterfall
    waiting: Standing | None
    retried_as: Sequence[str]
    deliveries: Sequence[Sent]
    feedback: Sequence[Feedback]


def model_choices(session: Session, heartbeat_seconds: float) -> list[ModelChoice]:
    """Every model with a champion; a worker counts while its last heartbeat is younger than `heartbeat_seconds`."""
    rows = session.execute(
        select(RoutingPolicy.model_name, Deployment)
        .join(Deployment, Deployment.id == RoutingPolicy.champion_id)
        .order_by(RoutingPolicy.model_name)
    )
    hostings = _live_hostings(session, heartbeat_seconds)
    return [_choice(name, deployment, hostings.get(deployment.id, [])) for name, deployment in rows]


def version_choices(session: Session) -> list[tuple[str, str]]:
    """What a job may ask for, each with its name for people: models, their challengers, and versions by number."""
    choices = []
    for model in list_models(session):
        if model.champion is not None:
            choices.append((model.name, f"{model.name} · v{model.champion.version}, champion"))
        if model.challenger is not None:
            choices.append(
                (f"{model.name}@challenger", f"{model.name} · challenger, version {model.challenger.version}")
            )
    served = select(Deployment).where(Deployment.state == "active", Deployment.first_ready_at.is_not(None))
    for version in session.scalars(served.order_by(Deployment.model_name, Deployment.created_at.desc())):
        name, number = version.model_name, version.model_version
        choices.append((f"{name}:{number}", f"{name} · version {number}"))
    return choices


def job_page(session: Session, tenant_id: str, job_id: str) -> JobPage:
    """The tenant's job for its page. Raises `NotFound`, also for another tenant's."""
    job = jobs.get(session, tenant_id, job_id)
    runs = list(session.scalars(select(JobRun).where(JobRun.job_id == job_id).order_by(JobRun.fence)))
    return JobPage(
        job=job,
        runs=runs,
        events=events_after(session, job_id, 0),
        waterfall=waterfall(job, runs, _now(session)),
        waiting=standing_of(session, job),
        retried_as=list(
            session.scalars(select(Job.id).where(Job.retry_of == job_id, Job.tenant_id == tenant_id).order_by(Job.id))
        ),
        deliveries=deliveries_of(session, job),
        feedback=feedback.list_feedback(session, tenant_id, job_id, limit=_MOST_TOLD)[0],
    )


def answers_of(session: Session, tenant_id: str, job_ids: Sequence[str]) -> list[Answer]:
    """The tenant's jobs in that order. Raises `NotFound`, also for another tenant's."""
    found = [jobs.get(session, tenant_id, job_id) for job_id in job_ids]
    return [Answer(job, standing_of(session, job)) for job in found]


def deliveries_of(session: Session, job: Job) -> list[Sent]:
    """The newest deliveries of the job's events, each with its attempts."""
    wanted = replays.DeliveryFilter(job_id=job.id)
    found, _ = replays.list_deliveries(session, job.tenant_id, wanted, limit=_MOST_TOLD)
    return [Sent(*replays.get_delivery(session, job.tenant_id, delivery.id)) for delivery in found]


def _live_hostings(session: Session, heartbeat_seconds: float) -> dict[str, list[Hosting]]:
    oldest = func.now() - func.make_interval(0, 0, 0, 0, 0, 0, heartbeat_seconds)
    found: dict[str, list[Hosting]] = {}
    for hosting in session.scalars(
        select(Hosting).join(Worker, Worker.id == Hosting.worker_id).where(Worker.heartbeat_at > oldest)
    ):
        found.setdefault(hosting.deployment_id, []).append(hosting)
    return found


def _choice(name: str, deployment: Deployment, hostings: Sequence[Hosting]) -> ModelChoice:
    state, detail = _readiness(hostings)
    return ModelChoice(name, deployment.model_version, deployment.context_length, state, detail)


def _readiness(hostings: Sequence[Hosting]) -> tuple[str, str]:
    by_state: dict[str, list[Hosting]] = {}
    for hosting in hostings:
        by_state.setdefault(hosting.state, []).append(hosting)
    if ready := by_state.get("ready"):
        return "ready", f"{len(ready)} worker{'s' if len(ready) > 1 else ''} ready"
    if loading := by_state.get("loading"):
        return "loading", f"loading, {max(hosting.progress for hosting in loading):.0%}"
    if failed := by_state.get("failed"):
        return "failed", f"could not be loaded: {failed[0].error}"
    return "absent", "no worker hosts it now: jobs wait until one does"


def _now(session: Session) -> datetime:
    now: datetime = session.scalars(select(func.clock_timestamp())).one()
    return now
