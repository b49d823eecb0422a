"""`Prefer: wait=N` (RFC 7240): holding a request until its job is over, for at most so long."""

import re
import time
from typing import Final

from penstock.errors import ValidationFailed
from penstock.jobs import services as jobs
from penstock.jobs.models import Job
from penstock.jobs.states import JobState
from penstock.services import Services

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


def wait_until_final(services: Services, job: Job, seconds: int) -> Job:
    """The job once its state is final, or as it stands after `seconds`; at once when no place to wait in is free."""
    leave = services.waiting_places.take() if seconds else None
    if leave is None:
        return job
    deadline = time.monotonic() + seconds
    try:
        with services.live.subscribed(job.id, tokens=False) as subscription:
            while True:
                job = _look(services, job)
                remaining = deadline - time.monotonic()
                if JobState(job.state).final or remaining <= 0 or services.live.closed:
                    return job
                subscription.take(remaining)
    finally:
        leave()


def _look(services: Services, job: Job) -> Job:
    with services.database.transaction() as session:
        return jobs.get(session, job.tenant_id, job.id)
