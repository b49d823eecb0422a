"""Where a waiting job stands: its place in the queue, what it waits for, and when its answer should be there."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from penstock.auth.models import Tenant
from penstock.clock import between_words, iso
from penstock.deployments.services import nowhere
from penstock.fairness.places import MOST_COUNTED, Place, place_of
from penstock.jobs.eta import COVERAGE, MOST_SEEN, Evidence, estimate
from penstock.jobs.models import Job, JobRun
from penstock.jobs.states import JobClass, JobState
from penstock.registry.hosting_services import HEARTBEAT_SECONDS, HostingState
from penstock.registry.models import LANE_ID, Deployment, Hosting, Worker

_MOST_RUNNING: Final = 512


class Blocker(StrEnum):
    """What a waiting job waits for. No job waits for a limit or a budget: those refuse it at submit."""

    TENANT_SUSPENDED = "tenant_suspended"
    BATCH_PAUSED = "batch_paused"
    NO_WORKER = "no_worker"
    LOAD_FAILED = "load_failed"
    LOADING = "loading"
    COLD = "cold"
    DRAINING = "draining"
    SLOTS_FULL = "slots_full"
    DOORBELL = "doorbell"


class EtaUnknown(StrEnum):
    """Why there is no interval."""

    HELD = "held"
    NOT_SERVED = "not_served"
    NOTHING_FINISHED = "nothing_finished"
    TOO_FAR_BACK = "too_far_back"


@dataclass(frozen=True, slots=True)
class Eta:
    """The answer comes between these moments with a chance of `coverage`, going by `based_on` finished jobs."""

    earliest: datetime
    latest: datetime
    seconds: tuple[float, float]
    based_on: int
    coverage: float = COVERAGE

    @property
    def words(self) -> str:
        """Such as `in 20 to 50 s`."""
        return between_words(*self.seconds)


@dataclass(frozen=True, slots=True)
class Standing:
    """A waiting job's standing. `place` is None while it may not be claimed; `progress` is of loading, 0 to 1."""

    place: Place | None
    blocker: Blocker
    words: str
    progress: float | None = None
    eta: Eta | None = None
    eta_unknown: EtaUnknown | None = None

    @property
    def position(self) -> int | None:
        """1 is the next that a worker takes."""
        return self.place.ahead + 1 if self.place is not None else None

    @property
    def sentences(self) -> str:
        """For a page: what it waits for, its place, and when its answer should come."""
        parts = [f"{self.words[:1].upper()}{self.words[1:]}."]
        if self.place is not None and not self.place.more:
            parts.append(f"Its place is {self.position}.")
        if self.eta is not None:
            parts.append(f"Its answer should come {self.eta.words}.")
        return " ".join(parts)

    @property
    def document(self) -> dict[str, Any]:
        """As `QueueDocument` shows it."""
        place = self.place
        return {
            "position": self.position,
            "position_is_exact": place is not None and not place.more,
            "ahead": {"own": place.own, "others": place.others, "own_jobs": list(place.own_jobs)}
            if place is not None and not place.more
            else None,
            "blocker": self.words,
            "blocker_code": self.blocker.value,
            "loading_progress": self.progress,
            "eta": _eta_document(self.eta),
            "eta_unknown": self.eta_unknown.value if self.eta_unknown is not None else None,
        }


@dataclass(frozen=True, slots=True)
class _Host:
    """A live worker that has, or should have, the deployment. `busy` counts its jobs, `own` those of the deployment."""

    state: str
    progress: float
    error: str | None
    draining: bool
    slots: int
    busy: int
    own: int

    @property
    def places(self) -> int:
        """Slots that are the deployment's, or free."""
        return max(self.slots - (self.busy - self.own), 0)

    @property
    def free(self) -> int:
        return max(self.slots - self.busy, 0)


def standing_of(session: Session, job: Job) -> Standing | None:
    """How the job stands; None when it does not wait."""
    if job.state != JobState.QUEUED:
        return None
    if session.get_one(Tenant, job.tenant_id).suspended_at is not None:
        return Standing(None, Blocker.TENANT_SUSPENDED, "its tenant is suspended", eta_unknown=EtaUnknown.HELD)
    if job.held:
        words = f"its batch {job.batch_id} is paused"
        return Standing(None, Blocker.BATCH_PAUSED, words, eta_unknown=EtaUnknown.HELD)
    if job.deployment_id == LANE_ID:
        return _in_the_lane(session, place_of(session, job))
    place, hosts = place_of(session, job), _hosts(session, job.deployment_id)
    serving = [host for host in hosts if host.state == HostingState.READY and not host.draining]
    if not serving:
        blocker, words, progress = _why_nobody_serves(session, job, hosts)
        return Standing(place, blocker, words, progress, eta_unknown=EtaUnknown.NOT_SERVED)
    blocker, words = _turn(place, serving)
    eta = _eta(session, job, place, sum(host.places for host in serving))
    if isinstance(eta, EtaUnknown):
        return Standing(place, blocker, words, eta_unknown=eta)
    return Standing(place, blocker, words, eta=eta)


def _in_the_lane(session: Session, place: Place) -> Standing:
    """Of a job that waits for files and no engine: whether any worker does such work, and who goes before."""
    living = Worker.heartbeat_at > func.clock_timestamp() - timedelta(seconds=HEARTBEAT_SECONDS)
    places = session.scalar(select(func.sum(Worker.file_jobs)).where(living, Worker.draining.is_(False))) or 0
    running = select(func.count()).where(Job.deployment_id == LANE_ID, Job.state == JobState.RUNNING)
    unknown = EtaUnknown.NOTHING_FINISHED
    if not places:
        words = "no live worker quantizes or evaluates (PENSTOCK_COMPRESSIONS)"
        return Standing(place, Blocker.NO_WORKER, words, eta_unknown=EtaUnknown.NOT_SERVED)
    if place.ahead < places - (session.scalar(running) or 0):
        return Standing(place, Blocker.DOORBELL, "a worker is about to take it", eta_unknown=unknown)
    return Standing(place, Blocker.SLOTS_FULL, _who_goes_before(place), eta_unknown=unknown)


def _hosts(session: Session, deployment_id: str) -> list[_Host]:
    running = select(func.count()).where(Job.lease_holder == Worker.id, Job.state == JobState.RUNNING)
    busy = running.correlate(Worker).scalar_subquery()
    own = running.where(Job.deployment_id == deployment_id).correlate(Worker).scalar_subquery()
    rows = session.execute(
        select(Hosting.state, Hosting.progress, Hosting.error, Worker.draining, Worker.slots, busy, own)
        .join(Worker, Worker.id == Hosting.worker_id)
        .where(
            Hosting.deployment_id == deployment_id,
            Worker.heartbeat_at > func.clock_timestamp() - timedelta(seconds=HEARTBEAT_SECONDS),
        )
    )
    return [_Host(*row) for row in rows]


def _why_nobody_serves(session: Session, job: Job, hosts: Sequence[_Host]) -> tuple[Blocker, str, float | None]:
    version = f"version {job.model_version} of {job.model_name}"
    loading = [host.progress for host in hosts if host.state == HostingState.LOADING]
    if loading:
        return Blocker.LOADING, f"{version} is loading ({max(loading):.0%})", max(loading)
    failures = [host.error for host in hosts if host.state == HostingState.FAILED]
    if failures:
        return Blocker.LOAD_FAILED, f"{version} could not be loaded: {failures[0]}", None
    if any(host.state == HostingState.COLD for host in hosts):
        return Blocker.COLD, f"{version} is cold, and a worker is about to load it", None
    if hosts:
        return Blocker.DRAINING, f"every worker that hosts {version} is about to stop", None
    why = nowhere(session, session.get_one(Deployment, job.deployment_id))
    return Blocker.NO_WORKER, f"no worker hosts {version}" + (f": {why}" if why else ""), None


def _turn(place: Place, serving: Sequence[_Host]) -> tuple[Blocker, str]:
    if place.ahead < sum(host.free for host in serving):
        return Blocker.DOORBELL, "a worker is about to take it"
    slots = sum(host.slots for host in serving)
    taken = f"all {slots} slots are taken" if slots > 1 else "the only slot is taken"
    if not any(host.free for host in serving):
        return Blocker.SLOTS_FULL, f"{taken}, and {_who_goes_before(place)}"
    return Blocker.SLOTS_FULL, _who_goes_before(place)


def _who_goes_before(place: Place) -> str:
    if place.more:
        return f"more than {MOST_COUNTED} jobs go before it"
    if place.ahead == 0:
        return "it is the next"
    if place.ahead == 1:
        return f"1 job goes before it, {'your own' if place.own else 'not yours'}"
    own = {0: "none of them yours", place.ahead: "all of them yours"}.get(place.own, f"{place.own} of them yours")
    return f"{place.ahead} jobs go before it, {own}"


def _eta(session: Session, job: Job, place: Place, slots: int) -> Eta | EtaUnknown:
    if place.more:
        return EtaUnknown.TOO_FAR_BACK
    if not slots:
        return EtaUnknown.NOT_SERVED
    taken = _taken(session, job.deployment_id)
    if not taken:
        return EtaUnknown.NOTHING_FINISHED
    evidence = Evidence(taken, _running(session, job.deployment_id), slots)
    interval = estimate(evidence, place.ahead, seed=job.id)
    now: datetime = session.scalars(select(func.clock_timestamp())).one()
    earliest, latest = (now + timedelta(seconds=seconds) for seconds in (interval.earliest, interval.latest))
    return Eta(earliest, latest, (interval.earliest, interval.latest), interval.seen)


def _taken(session: Session, deployment_id: str) -> list[float]:
    """Seconds from claim to end, of the last jobs that somebody waited for and that succeeded in one run."""
    taken = func.extract("epoch", Job.finished_at - Job.started_at)
    last = select(taken).where(
        Job.deployment_id == deployment_id,
        Job.state == JobState.SUCCEEDED,
        Job.runs == 1,
        Job.job_class < JobClass.SHADOW.value,
    )
    return [float(seconds) for seconds in session.scalars(last.order_by(Job.finished_at.desc()).limit(MOST_SEEN))]


def _running(session: Session, deployment_id: str) -> list[float]:
    """Seconds since the claims of those that run now."""
    ran = func.extract("epoch", func.clock_timestamp() - JobRun.started_at)
    now = (
        select(ran)
        .join(Job, (Job.id == JobRun.job_id) & (Job.fence == JobRun.fence))
        .where(Job.deployment_id == deployment_id, Job.state == JobState.RUNNING)
        .limit(_MOST_RUNNING)
    )
    return [max(float(seconds), 0.0) for seconds in session.scalars(now)]


def _eta_document(eta: Eta | None) -> dict[str, Any] | None:
    if eta is None:
        return None
    return {
        "earliest": iso(eta.earliest),
        "latest": iso(eta.latest),
        "coverage": eta.coverage,
        "based_on": eta.based_on,
    }
