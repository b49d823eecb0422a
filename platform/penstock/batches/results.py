"""What came of each line, as OpenAI's output file has it. Nothing is kept twice: it is told from the line's job."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from penstock.batches.lines import CHAT, COMPLETIONS
from penstock.batches.models import Batch, BatchLine
from penstock.batches.states import LineState
from penstock.jobs.models import Job
from penstock.jobs.presentation import job_document
from penstock.jobs.services import PromptCounter
from penstock.openai_api.calls import problem_of
from penstock.openai_api.chat_request import ChatRequest
from penstock.openai_api.completion_request import CompletionRequest
from penstock.openai_api.forms import ChatForm, CompletionForm, Form, names_tokens
from penstock.openai_api.problems import error_document
from penstock.registry.models import Deployment

_REASONS: Final = {
    LineState.CANCELLED: ("batch_cancelled", "it was cancelled before it was through"),
    LineState.EXPIRED: ("batch_expired", "it was not through when the batch's time was over"),
    LineState.FAILED: ("input_file_gone", "the batch's input file was lost"),
}
"""What is said of lines that got no answer, and of those that got no job and no reason of their own."""
_DELETED: Final = {"code": "job_deleted", "message": "its job was deleted"}


@dataclass(frozen=True, slots=True)
class Page:
    """Results, the position behind which the next ones come, and whether there are any yet."""

    results: list[dict[str, Any]]
    next: int
    has_more: bool


class Results:
    """Tells the lines of one batch within one transaction."""

    def __init__(self, session: Session, prompts: PromptCounter, batch: Batch) -> None:
        self._session, self._prompts, self._batch = session, prompts, batch

    def settled_after(self, position: int, limit: int) -> Page:
        """In the order in which lines were settled, behind that position."""
        settled = select(BatchLine).where(BatchLine.batch_id == self._batch.id, BatchLine.position > position)
        lines = self._session.scalars(settled.order_by(BatchLine.position).limit(limit + 1)).all()
        shown = lines[:limit]
        return Page(self.tell(shown), shown[-1].position or 0 if shown else position, len(lines) > limit)

    def lines_after(self, line: int, limit: int) -> Sequence[BatchLine]:
        """In the order of the input, behind that line; all of them are settled."""
        settled = select(BatchLine).where(BatchLine.batch_id == self._batch.id, BatchLine.line > line)
        return self._session.scalars(settled.order_by(BatchLine.line).limit(limit)).all()

    def tell(self, lines: Sequence[BatchLine]) -> list[dict[str, Any]]:
        """Each line as `BatchResult`."""
        ids = [line.job_id for line in lines if line.job_id is not None]
        jobs = {job.id: job for job in self._session.scalars(select(Job).where(Job.id.in_(ids)))} if ids else {}
        return [self._told(line, jobs.get(line.job_id or "")) for line in lines]

    def _told(self, line: BatchLine, job: Job | None) -> dict[str, Any]:
        answered = job is not None and line.state in (LineState.SUCCEEDED, LineState.FAILED)
        return {
            "id": f"{self._batch.id.replace('batch_', 'batch_req_', 1)}_{line.line}",
            "custom_id": line.custom_id,
            "response": self._answer(line, job) if job is not None and answered else None,
            "error": None if answered else _failure(line, job),
            "line": line.line,
            "status": line.state,
        }

    def _answer(self, line: BatchLine, job: Job) -> dict[str, Any]:
        document = job_document(job)
        problem = problem_of(document)
        if self._batch.endpoint not in (CHAT, COMPLETIONS):
            body = document
        elif problem is not None:
            body = error_document(problem.problem())
        else:
            body = self._form(line, job).answer([document])
        return {"status_code": problem.status if problem else 200, "request_id": job.id, "body": body}

    def _form(self, line: BatchLine, job: Job) -> Form:
        call = _chat_of(job) if self._batch.endpoint == CHAT else _completion_of(job, echo=line.echo)
        known = [self._prompts.vocabulary(self._deployment(job))] if names_tokens(call) else []
        return ChatForm(call, [job], known) if isinstance(call, ChatRequest) else CompletionForm(call, [job], known)

    def _deployment(self, job: Job) -> Deployment:
        return self._session.get_one(Deployment, job.deployment_id)


def _failure(line: BatchLine, job: Job | None) -> dict[str, Any]:
    if line.error is not None:
        return line.error
    if line.job_id is not None and job is None:
        return _DELETED
    code, message = _REASONS[LineState(line.state)]
    kept = f"; GET /v1/jobs/{line.job_id} has the output so far" if line.job_id else ""
    return {"code": code, "message": message + kept}


def _chat_of(job: Job) -> ChatRequest:
    """The call that the job serves, as far as its answer depends on it."""
    return ChatRequest.model_validate(
        {
            "model": job.model,
            "messages": job.input["messages"],
            "logprobs": job.params["logprobs"],
            "service_tier": "flex",
        }
    )


def _completion_of(job: Job, *, echo: bool) -> CompletionRequest:
    params = job.params
    logprobs = params["top_logprobs"] if params["logprobs"] else None
    return CompletionRequest.model_validate(
        {
            "model": job.model,
            "prompt": job.input.get("prompt") or job.input["token_ids"],
            "n": params["n"],
            "logprobs": params["prompt_logprobs"] if job.kind == "score" else logprobs,
            "echo": echo,
        }
    )
