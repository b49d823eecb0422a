"""One call and the jobs that serve it: submitted together, waited for or followed, and given up with the connection.

A call ends with its client's connection: its jobs are cancelled, unless the call carries an `Idempotency-Key`, which
says that the client will come again for the answer.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

from pydantic import ValidationError
from sqlalchemy.orm import Session

from penstock.auth.permits import refuse_model
from penstock.auth.services import Principal
from penstock.errors import JobAlreadyFinished, JobFailed, JobStopped, PenstockError, ServiceUnavailable
from penstock.idempotency.services import KeyedRequest, accept_once
from penstock.jobs import services as jobs
from penstock.jobs.ahead import prepare
from penstock.jobs.fitness import Vocabulary
from penstock.jobs.intake import Asked
from penstock.jobs.live import Subscription
from penstock.jobs.models import Job
from penstock.jobs.presentation import job_document
from penstock.jobs.schemas import JobRequest
from penstock.jobs.state_watch import POLL_SECONDS
from penstock.jobs.states import JobState
from penstock.jobs.stream import Cursor, JobStream, Sources, StreamItem
from penstock.jobs.views import announce
from penstock.problems import explain_validation
from penstock.registry.models import Deployment
from penstock.routing.services import model_name_of
from penstock.services import Services

Batch = tuple[int, Sequence[StreamItem]]
"""What came of the call's job of that number."""
STOPPING: Final = "the server is stopping; send the call again"


class ClientGone(Exception):
    """Nobody is there any more to be answered."""


@dataclass(frozen=True, slots=True)
class Submission:
    """A call as it was asked for: a job for each body, and the key under which they are submitted, if any.

    `names_tokens` says that the answer will tell tokens by their text, `outlives_connection` that somebody will come
    for it later. `keep` is called with each job that was made, in the transaction that made it.
    """

    bodies: Sequence[Mapping[str, Any]]
    asked: KeyedRequest | None
    traceparent: str | None
    names_tokens: bool
    outlives_connection: bool = False
    keep: Callable[[Session, Job], None] | None = None


class Call:
    """The jobs of one call, with their models' tokens where those are to be named.

    `client_gone` tells whether the call's client is still there.
    """

    def __init__(self, services: Services, principal: Principal, client_gone: Callable[[], bool]) -> None:
        self._services, self._principal, self._client_gone = services, principal, client_gone
        self._outlives_connection = False
        self._over: set[str] = set()
        self.jobs: list[Job] = []
        self.vocabularies: list[Vocabulary] = []

    def submit(self, submission: Submission) -> None:
        """Submit all jobs, or none. Raises what the native submit raises, in the names of the job's fields."""
        requests = [prepare(self._services, _job_request(body)) for body in submission.bodies]
        with self._services.database.transaction() as session:
            submitted = [
                self._accept(session, request, _numbered(submission.asked, number), submission)
                for number, request in enumerate(requests)
            ]
            known = [self._vocabulary(session, job) for job in submitted] if submission.names_tokens else []
        self.jobs, self.vocabularies = submitted, known
        self._outlives_connection = submission.asked is not None or submission.outlives_connection

    def wait(self) -> list[dict[str, Any]]:
        """The documents of the jobs once all have succeeded.

        Raises `JobFailed` or `JobStopped` for the first that has not, `ServiceUnavailable` when the process stops, and
        `ClientGone`.
        """
        return [_succeeded(self._ended(job)) for job in self.jobs]

    def wait_for_ends(self) -> list[dict[str, Any]]:
        """The documents of the jobs once all are over, however they ended. Raises the last two of these."""
        return [self._ended(job) for job in self.jobs]

    def follow(self) -> Generator[Batch, None, None]:
        """What the jobs' streams tell, one job after the other; an empty batch when nothing came for long."""
        sources = Sources(self._services.database, self._services.journal, self._services.live)
        for number, job in enumerate(self.jobs):
            for items in JobStream(sources, job.id, Cursor()).follow():
                if self._client_gone():
                    return
                if items and "job" in items[-1].data:
                    self._over.add(job.id)
                yield number, items

    def abandon(self) -> None:
        """Cancel what was not seen to its end, unless the client will come again for it."""
        if self._outlives_connection:
            return
        for job in self.jobs:
            if job.id not in self._over:
                self._cancel(job)

    def _accept(self, session: Session, prepared: Asked, asked: KeyedRequest | None, submission: Submission) -> Job:
        principal, services = self._principal, self._services

        def make() -> Job:
            refuse_model(principal, model_name_of(prepared.request.model))
            job = jobs.submit(
                session,
                tenant_id=principal.tenant_id,
                asked=prepared,
                prompts=services.prompts,
                limits=services.quotas.job_limits(principal.tenant_id, principal.limits),
                traceparent=submission.traceparent,
                api_key_id=principal.key_id,
            )
            if submission.keep is not None:
                submission.keep(session, job)
            return job

        accepted = accept_once(session, asked, make, keep_seconds=services.settings.idempotency_seconds)
        return accepted.job or jobs.get(session, principal.tenant_id, accepted.job_id)

    def _vocabulary(self, session: Session, job: Job) -> Vocabulary:
        vocabulary = self._services.prompts.vocabulary(session.get_one(Deployment, job.deployment_id))
        vocabulary.bytes_of(0)  # a tokenizer that cannot tell refuses here, where nothing is submitted yet
        return vocabulary

    def _ended(self, job: Job) -> dict[str, Any]:
        with self._services.live.subscribed(job.id, tokens=False) as subscription:
            while not JobState((job := self._look(job)).state).final:
                self._wait_for_news(subscription)
        self._over.add(job.id)
        return job_document(job)

    def _wait_for_news(self, subscription: Subscription) -> None:
        news = False
        while not news:
            if self._client_gone():
                raise ClientGone
            if self._services.live.closed:
                raise ServiceUnavailable(STOPPING, retry_after=1)
            news = subscription.take(POLL_SECONDS).look_again

    def _look(self, job: Job) -> Job:
        with self._services.database.transaction() as session:
            return jobs.get(session, job.tenant_id, job.id)

    def _cancel(self, job: Job) -> None:
        with suppress(JobAlreadyFinished):
            with self._services.database.transaction() as session:
                cancelled = jobs.cancel(session, job.tenant_id, job.id)
            announce(self._services, cancelled)


def _succeeded(document: dict[str, Any]) -> dict[str, Any]:
    if (problem := problem_of(document)) is not None:
        raise problem
    return document


def problem_of(document: Mapping[str, Any]) -> PenstockError | None:
    """Why a finished job is no answer; None where it is one."""
    if document["status"] == JobState.SUCCEEDED:
        return None
    error = document["error"] or {}
    why = f"{document['id']} {'has ' if document['status'] == 'expired' else ''}{document['status']}"
    if document["status"] == JobState.FAILED:
        return JobFailed(f"{why}: {error.get('message', 'see the job')} ({error.get('code', 'unknown')})")
    return JobStopped(f"{why} before it was through; GET /v1/jobs/{document['id']} has the output so far")


def _job_request(body: Mapping[str, Any]) -> JobRequest:
    try:
        return JobRequest.model_validate(body)
    except ValidationError as error:
        raise explain_validation(error) from None


def _numbered(asked: KeyedRequest | None, number: int) -> KeyedRequest | None:
    """The key of each job of a call with several; no header can hold a line feed, so it is nobody else's."""
    return asked and (replace(asked, key=f"{asked.key}\n{number}") if number else asked)
