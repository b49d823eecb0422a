"""`Prefer: wait=N` (RFC 7240): holding a request until its job is over, for at most so long."""

import re
import time
from collections.abc import Callable
from typing import Final

from penstock.connection import never
from penstock.db import DATABASE_AWAY
from penstock.errors import ValidationFailed
from penstock.jobs import services as jobs
from penstock.jobs.models import Job
from penstock.jobs.state_watch import POLL_SECONDS
from penstock.jobs.states import JobState
from penstock.logs import get_logger
from penstock.services import Services

log = get_logger(__name__)
MAX_WAIT_SECONDS: Final = 60
_PREFERENCE: Final = re.compile(r'(?:^|[,;])\s*wait\s*=\s*"?([^",;\s]*)"?', re.IGNORECASE)


def wait_asked(prefer: str | None) -> int:
    """The seconds of `wait=N`, at most 60; 0 without it. Raises `ValidationFailed` when N is no number."""
    match = _PREFERENCE.search(prefer or "")
    if match is None:
        return 0
    if not match[1].isascii() or not match[1].isdigit():
        raise ValidationFailed(
            f"wait={match[1]} is not a number of seconds; send for example `Prefer: wait=20`", field="Prefer"
        )
    return min(int(match[1][:9]), MAX_WAIT_SECONDS)


def wait_until_final(services: Services, job: Job, seconds: int, client_gone: Callable[[], bool] = never) -> Job:
    """The job once its state is final, or as it stands after `seconds`.

    At once when no place to wait in is free; within seconds when the client has gone, for nobody waits then.
    """
    leave = services.waiting_places.take() if seconds else None
    if leave is None:
        return job
    deadline = time.monotonic() + seconds
    try:
        with services.live.subscribed(job.id, tokens=False) as subscription:
            job = _look(services, job)
            while not (JobState(job.state).final or services.live.closed or client_gone()):
                remaining = deadline - time.monotonic()
                if remaining <= 0 or subscription.take(min(remaining, POLL_SECONDS)).look_again:
                    job = _look(services, job)
                if remaining <= 0:
                    break
            return job
    finally:
        leave()


def _look(services: Services, job: Job) -> Job:
    """As it is stored; as it was when PostgreSQL is away, since its acceptance is to be told all the same."""
    try:
        with services.database.transaction() as session:
            return jobs.get(session, job.tenant_id, job.id)
    except DATABASE_AWAY as error:
        log.warning("wait.unread", job=job.id, error=type(error).__name__)
        return job
