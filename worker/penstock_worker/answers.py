"""What an engine answers, as it reaches the jobs."""

from collections.abc import Iterable, Sequence

from penstock.jobs.states import JobState, RunOutcome
from penstock.logs import get_logger

from penstock_worker.messages import Delta, Refusal
from penstock_worker.running import Finished, GivenBack, RunningJob

LATE, FULL = "deadline_exceeded", "queue_full"
"""The engine's codes of what is no failure of the job."""

log = get_logger(__name__)


def by_request(deltas: Sequence[Delta]) -> Iterable[tuple[str, list[Delta]]]:
    """The deltas of each request, in order."""
    grouped: dict[str, list[Delta]] = {}
    for delta in deltas:
        grouped.setdefault(delta.request_id, []).append(delta)
    return grouped.items()


def give(job: RunningJob, deltas: Sequence[Delta]) -> list[int]:
    """The choices that end here alone. A token that cannot be turned into text fails its own job, and no other."""
    try:
        return job.take(deltas)
    except Exception as error:
        log.exception("job.token_failed", job=job.id)
        message = f"the worker could not turn its tokens into text: {type(error).__name__}"
        job.end(Finished(JobState.FAILED, {"code": "internal_error", "message": message}))
        return [delta.choice for delta in deltas]


def refuse(job: RunningJob, refusal: Refusal) -> None:
    """End the job as the engine refused it: late ones expire, and what found no room goes back to the queue."""
    if refusal.code == LATE:
        job.end(Finished(JobState.EXPIRED), JobState.EXPIRED.value)
    elif refusal.code == FULL:
        job.end(GivenBack(RunOutcome.HANDED_BACK, refusal.message))
    else:
        job.end(Finished(JobState.FAILED, {"code": refusal.code, "message": refusal.message}))
