"""Stored responses: kept with their jobs, found, gone on with, deleted. Takes a session, never commits."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from penstock.errors import NotFound, ValidationFailed
from penstock.jobs.models import Job
from penstock.jobs.states import JobState
from penstock.openai_api.response_models import StoredResponse
from penstock.openai_api.response_request import Message

_PREVIOUS: Final = "previous_response_id"


def response_id(job_id: str) -> str:
    """The id of the response that a job serves."""
    return f"resp_{_own_part(job_id)}"


def message_id(job_id: str) -> str:
    """The id of the message that a response's job writes."""
    return f"msg_{_own_part(job_id)}"


def keep(session: Session, job: Job, told: Mapping[str, Any]) -> None:
    """Have the job's response stored."""
    session.add(StoredResponse(id=response_id(job.id), tenant_id=job.tenant_id, job_id=job.id, told=dict(told)))


def find(session: Session, tenant_id: str, wanted: str) -> tuple[StoredResponse, Job]:
    """The tenant's response with its job. Raises `NotFound`, also for another tenant's."""
    row = session.execute(
        select(StoredResponse, Job)
        .join(Job, Job.id == StoredResponse.job_id)
        .where(StoredResponse.id == wanted, StoredResponse.tenant_id == tenant_id)
    ).one_or_none()
    if row is None:
        raise NotFound(f"no response {wanted!r} is stored", field="id")
    return row[0], row[1]


def conversation_after(session: Session, tenant_id: str, wanted: str | None) -> Sequence[Message]:
    """The conversation with that response's answer at its end, without its instructions; nothing without a response.

    Raises `NotFound`, and `ValidationFailed` while it is being generated.
    """
    if wanted is None:
        return []
    try:
        response, job = find(session, tenant_id, wanted)
    except NotFound as error:
        raise NotFound(error.message, field=_PREVIOUS) from None
    if not JobState(job.state).final:
        raise ValidationFailed(f"{_PREVIOUS}: {wanted} is still being generated; wait for its end", field=_PREVIOUS)
    answers = [choice["text"] for choice in (job.output or {}).get("choices", [])]
    return [*conversation_of(response, job), *({"role": "assistant", "content": text} for text in answers)]


def conversation_of(response: StoredResponse, job: Job) -> Sequence[Message]:
    """What the response answers: earlier turns and its own input, without its instructions."""
    messages: list[Message] = job.input["messages"]
    return messages[1:] if response.told["instructions"] else messages


def input_items(response: StoredResponse, job: Job) -> list[dict[str, Any]]:
    """The conversation as items, oldest first. Their ids are those of their places in this response."""
    return [
        {
            "type": "message",
            "id": f"{message_id(job.id)}_{place}",
            "status": "completed",
            "role": message["role"],
            "content": [_part(message)],
        }
        for place, message in enumerate(conversation_of(response, job))
    ]


def _part(message: Message) -> dict[str, Any]:
    if message["role"] == "assistant":
        return {"type": "output_text", "text": message["content"], "annotations": [], "logprobs": []}
    return {"type": "input_text", "text": message["content"]}


def _own_part(job_id: str) -> str:
    return job_id.removeprefix("job_")
