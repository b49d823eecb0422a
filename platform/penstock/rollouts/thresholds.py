"""From how many seconds on a job is slow: the champion's quantile, by length of prompt, frozen once it is known.

Measured is the time from a job's start on a worker to its end. Waiting is left out: it tells how many workers a version
has, and how busy they are. Everything else counts that a version can make longer: reading the prompt, each token, and
how many of them it takes to come to an end, since whoever waits for an answer waits for all of it.

Any threshold would do: where nothing is wrong both arms pass it equally often. So a few jobs suffice to set one.
"""

from datetime import timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, and_, case, exists, extract, func, literal, select
from sqlalchemy.orm import Session, aliased

from penstock.auth.system_tenant import SYSTEM_TENANT_ID
from penstock.jobs.models import Job, JobRun
from penstock.jobs.states import JobState
from penstock.registry.models import Hosting
from penstock.rollouts.models import Assignment, Rollout
from penstock.rollouts.policy import Latency

WARM_AFTER: Final = timedelta(seconds=60)
"""A model that was loaded a shorter while ago is cold: its first steps compile, allocate and fill caches."""
FEWEST_JOBS: Final = 20
"""Of a stratum, before its threshold is set."""
MOST_JOBS: Final = 2_000
"""The newest so many of the champion's, of all strata together."""

_RUN, _HOSTING = aliased(JobRun), aliased(Hosting)


def _took(until: ColumnElement[Any]) -> ColumnElement[float]:
    met_cold = exists().where(
        _RUN.job_id == Job.id,
        _HOSTING.worker_id == _RUN.worker_id,
        _HOSTING.deployment_id == Job.deployment_id,
        _RUN.started_at.between(_HOSTING.ready_at, _HOSTING.ready_at + WARM_AFTER),
    )
    return case((and_(Job.runs == 1, ~met_cold), extract("epoch", until - Job.started_at)), else_=None)


SECONDS: Final = _took(func.coalesce(Job.finished_at, func.clock_timestamp()))
"""What a job took, by now if it still runs; null where that says nothing of its version: it began anew, never, or met a
cold model."""


def freeze(session: Session, rollout: Rollout, latency: Latency) -> None:
    """Set the thresholds that are missing and can be told by now.

    The champion's jobs set them, in the rollout those that were counted already: no job sets what it is judged by.
    """
    if set(rollout.thresholds) == set(latency.strata):
        return
    stratum = _stratum(latency)
    found = select(stratum.label("stratum"), SECONDS.label("seconds")).select_from(Job)
    jobs = found.where(*_known(rollout)).order_by(Job.finished_at.desc()).limit(MOST_JOBS).subquery()
    quantile = func.percentile_cont(latency.quantile).within_group(jobs.c.seconds)
    measured = (
        select(jobs.c.stratum, quantile).group_by(jobs.c.stratum).having(func.count(jobs.c.seconds) >= FEWEST_JOBS)
    )
    known = {name: float(seconds) for name, seconds in session.execute(measured)}
    if new := known.keys() - rollout.thresholds.keys():
        rollout.thresholds = rollout.thresholds | {name: known[name] for name in sorted(new)}
        session.flush()


def _known(rollout: Rollout) -> tuple[ColumnElement[bool], ...]:
    to_be_judged = exists().where(
        Assignment.job_id == Job.id, Assignment.rollout_id == rollout.id, Assignment.counted_at.is_(None)
    )
    somebodys = Job.tenant_id != SYSTEM_TENANT_ID
    return Job.deployment_id == rollout.champion_id, Job.state == JobState.SUCCEEDED, somebodys, ~to_be_judged


def _stratum(latency: Latency) -> ColumnElement[str]:
    """As `Latency.stratum` has it."""
    bounds = [
        (Job.prompt_tokens < bound, literal(name))
        for bound, name in zip(latency.prompt_tokens, latency.strata, strict=False)
    ]
    return case(*bounds, else_=literal(latency.strata[-1])) if bounds else literal(latency.strata[-1])
