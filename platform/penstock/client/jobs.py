"""`client.jobs`: everything that can be done with jobs."""

import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal
from urllib.parse import quote
from uuid import uuid4

from penstock.client.documents import parse
from penstock.client.errors import WaitTimedOut
from penstock.client.events import Cursor, Event
from penstock.client.inputs import Message, Params, Webhook
from penstock.client.job_documents import Feedback, FeedbackPage, Job, JobPage
from penstock.client.patience import OnLost, Patience
from penstock.client.reading import Asking, Pages, Waiting
from penstock.client.stream import JobReader
from penstock.client.transport import IDEMPOTENCY_HEADER
from penstock.errors import ValidationFailed
from penstock.jobs.states import JobState

_PATH: Final = "/v1/jobs"
_FIRST_PAUSE_SECONDS: Final = 0.05
_LONGEST_PAUSE_SECONDS: Final = 1.0


class Jobs:
    """The jobs of the key's tenant."""

    def __init__(self, transport: Asking, *, patience_seconds: float) -> None:
        self._transport = transport
        self._patience_seconds = patience_seconds

    def submit(
        self,
        *,
        model: str,
        prompt: str | None = None,
        messages: Sequence[Message] | None = None,
        params: Params | Mapping[str, Any] | None = None,
        job_class: Literal["interactive", "batch"] | None = None,
        priority: int | None = None,
        deadline: datetime | None = None,
        token_budget: int | None = None,
        webhook: str | Webhook | None = None,
        tags: Sequence[str] | None = None,
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Queue a job for `model` (`name`, `name@alias` or `name:version`) with a `prompt` or with `messages`.

        What is left out is the server's default. `deadline` must be aware. `token_budget` bounds the prompt and the
        output of all choices together. Raises `ModelNotFound`, `ValidationFailed`,
        `ContextLengthExceeded`, `QuotaExceeded` and what every call may raise.
        """
        body = {
            "model": model,
            "input": given(prompt=prompt, messages=list(messages) if messages is not None else None),
            "params": dict(params) if params is not None else None,
            "class": job_class,
            "priority": priority,
            "deadline": in_utc(deadline),
            "budget": {"tokens": token_budget} if token_budget is not None else None,
            "webhook": {"url": webhook} if isinstance(webhook, str) else webhook,
            "tags": list(tags) if tags is not None else None,
            "metadata": dict(metadata) if metadata is not None else None,
        }
        return self._job("POST", _PATH, body=given(**body), headers=idempotency(idempotency_key))

    def score(
        self,
        *,
        model: str,
        prompt: str | None = None,
        messages: Sequence[Message] | None = None,
        token_ids: Sequence[int] | None = None,
        continuation: str | Sequence[int] | None = None,
        top_logprobs: int | None = None,
        job_class: Literal["interactive", "batch"] | None = None,
        tags: Sequence[str] | None = None,
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Queue a job that tells how likely `model` finds a prompt, and generates nothing.

        With a `continuation` (text, or token ids after `token_ids`) that alone is scored. The finished job's `output`
        has the total as `score`, and each token in `prompt_logprobs`, beside it so many of the likeliest in its place.
        """
        body = {
            "kind": "score",
            "model": model,
            "input": given(
                prompt=prompt,
                messages=list(messages) if messages is not None else None,
                token_ids=list(token_ids) if token_ids is not None else None,
                **_continued(continuation),
            ),
            "params": given(prompt_logprobs=top_logprobs),
            "class": job_class,
            "tags": list(tags) if tags is not None else None,
            "metadata": dict(metadata) if metadata is not None else None,
        }
        return self._job("POST", _PATH, body=given(**body), headers=idempotency(idempotency_key))

    def get(self, job_id: str) -> Job:
        """The job as it stands. Raises `NotFound`."""
        return self._job("GET", _path(job_id))

    def list(
        self,
        *,
        status: JobState | str | Sequence[JobState | str] | None = None,
        model: str | None = None,
        version: str | None = None,
        tag: str | None = None,
        job_class: Literal["interactive", "batch"] | None = None,
        key: str | None = None,
        batch: str | None = None,
        error: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        finished_after: datetime | None = None,
        finished_before: datetime | None = None,
        page_size: int | None = None,
    ) -> Iterator[Job]:
        """All jobs that match, newest first; each page is fetched when the iterator gets there."""
        query: dict[str, Any] = {
            "status": status if status is None or isinstance(status, str) else ",".join(status),
            "model": model,
            "version": version,
            "tag": tag,
            "class": job_class,
            "key": key,
            "batch": batch,
            "error": error,
            "created_after": in_utc(created_after),
            "created_before": in_utc(created_before),
            "finished_after": in_utc(finished_after),
            "finished_before": in_utc(finished_before),
            "limit": page_size,
        }
        return self._transport.pages(Pages(JobPage, _PATH, query))

    def cancel(self, job_id: str) -> Job:
        """Stop the job: at once while it waits, at its next token while it runs. What it wrote is kept.

        Raises `JobAlreadyFinished`.
        """
        return self._job("POST", f"{_path(job_id)}/cancel")

    def delete(self, job_id: str) -> None:
        """Delete a finished job for good, with all that it wrote; its usage stays counted.

        Raises `JobNotFinished`, and `JobInBatch` while a batch needs it or has files that hold it as well.
        """
        self._transport.request("DELETE", _path(job_id))

    def retry(self, job_id: str, *, idempotency_key: str | None = None) -> Job:
        """A new job with the request of a finished one; its `retry_of` names the old one."""
        return self._job("POST", f"{_path(job_id)}/retry", headers=idempotency(idempotency_key))

    def wait(self, job_id: str, timeout: float | None = None) -> Job:
        """The job once it has finished, however it ended.

        Raises `WaitTimedOut` after `timeout` seconds; the job goes on. Outages are borne for the client's `patience`.
        """
        patience = Patience(min(self._patience_seconds, timeout or float("inf")))
        return self._transport.poll(_JobWait(job_id, timeout), patience)

    def stream(
        self, job_id: str, last_event_id: str | None = None, *, on_lost: OnLost = lambda _error: None
    ) -> Iterator[Event]:
        """The job's events and tokens as they come, to the final event, each exactly once.

        A lost connection is made again just after the last event that was given out. With `last_event_id` (the `id`
        of an event that an earlier reader had, also of another process) it begins after that one. Raises
        `ConnectionFailed` when the server stays silent for the client's `patience`; until then `on_lost` is told of
        each connection that was lost.
        """
        cursor = _cursor(last_event_id) if last_event_id is not None else Cursor()
        reader = JobReader(f"{_path(job_id)}/events", cursor)
        return self._transport.read(reader, Patience(self._patience_seconds, on_lost))

    def give_feedback(
        self,
        job_id: str,
        *,
        score: float | None = None,
        label: str | None = None,
        comment: str | None = None,
        choice: int | None = None,
        user: str | None = None,
        idempotency_key: str | None = None,
    ) -> Feedback:
        """Judge a finished job's answer, or one choice of it, by a score from 0 to 1, a label, or both.

        Raises `JobNotFinished`, and `ValidationFailed` for a choice that the job has not.
        """
        body = given(score=score, label=label, comment=comment, choice=choice, user=user)
        headers = idempotency(idempotency_key)
        return parse(Feedback, self._transport.request("POST", f"{_path(job_id)}/feedback", body=body, headers=headers))

    def feedback(self, job_id: str, *, page_size: int | None = None) -> Iterator[Feedback]:
        """All that was said of the job's answer, oldest first."""
        return self._transport.pages(Pages(FeedbackPage, f"{_path(job_id)}/feedback", {"limit": page_size}))

    def _job(self, method: str, path: str, *, body: Any = None, headers: Mapping[str, str] | None = None) -> Job:
        return parse(Job, self._transport.request(method, path, body=body, headers=headers))


class _JobWait(Waiting[Job]):
    """Looks at a job ever more seldom."""

    def __init__(self, job_id: str, timeout: float | None) -> None:
        self.path, self._timeout = _path(job_id), timeout
        self._deadline = time.monotonic() + timeout if timeout is not None else float("inf")
        self._pause = _FIRST_PAUSE_SECONDS

    def take(self, answer: Mapping[str, Any], /) -> tuple[Job, float | None]:
        job = parse(Job, answer)
        if job.finished:
            return job, None
        if time.monotonic() + self._pause > self._deadline:
            raise WaitTimedOut(f"{job.id} is {job.status.value} after {self._timeout:g} seconds; it goes on", job=job)
        pause, self._pause = self._pause, min(self._pause * 1.5, _LONGEST_PAUSE_SECONDS)
        return job, pause


def _cursor(last_event_id: str) -> Cursor:
    try:
        return Cursor.parse(last_event_id)
    except ValueError as error:
        raise ValidationFailed(str(error), field="last_event_id") from None


def _path(job_id: str) -> str:
    return f"{_PATH}/{quote(job_id, safe='')}"


def _continued(by: str | Sequence[int] | None) -> dict[str, Any]:
    if by is None or isinstance(by, str):
        return {"continuation": by}
    return {"continuation_token_ids": list(by)}


def given(**members: Any) -> dict[str, Any]:
    """The members that are not None."""
    return {name: value for name, value in members.items() if value is not None}


def idempotency(key: str | None) -> dict[str, str]:
    """The header that makes a call act once; a key is drawn where none is given."""
    return {IDEMPOTENCY_HEADER: key or str(uuid4())}


def in_utc(moment: datetime | None) -> str | None:
    """RFC 3339 in UTC. Raises `ValidationFailed` for a moment without a time zone."""
    if moment is None:
        return None
    if moment.tzinfo is None:
        raise ValidationFailed(
            f"{moment.isoformat()} has no time zone; an aware datetime is needed, as datetime.now(UTC) is"
        )
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
