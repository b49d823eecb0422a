"""Stored responses: kept with their jobs, found, gone on with, deleted. Takes a session, never commits."""

from collections.abc import Iterator, Mapping, Sequence
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


def call_item_id(job_id: str, index: int) -> str:
    """The id of the call of that index that a response's job makes, as an item."""
    return f"fc_{_own_part(job_id)}_{index}"


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
    answers = [_as_message(choice, wanted) for choice in (job.output or {}).get("choices", [])]
    return [*conversation_of(response, job), *answers]


def conversation_of(response: StoredResponse, job: Job) -> Sequence[Message]:
    """What the response answers: earlier turns and its own input, without its instructions."""
    messages: list[Message] = job.input["messages"]
    return messages[1:] if response.told["instructions"] else messages


def input_items(response: StoredResponse, job: Job) -> list[dict[str, Any]]:
    """The conversation as items, oldest first. Their ids are those of their places in this response."""
    messages = enumerate(conversation_of(response, job))
    return [item for place, message in messages for item in _items(message, f"{_own_part(job.id)}_{place}")]


def _items(message: Message, place: str) -> Iterator[dict[str, Any]]:
    if message["role"] == "tool":
        yield {
            "type": "function_call_output",
            "id": f"fco_{place}",
            "status": "completed",
            "call_id": message["tool_call_id"],
            "output": message["content"],
        }
        return
    calls = message.get("tool_calls", [])
    if message["content"] or not calls:
        yield {
            "type": "message",
            "id": f"msg_{place}",
            "status": "completed",
            "role": message["role"],
            "content": [_part(message)],
        }
    for number, call in enumerate(calls):
        yield call_item(f"fc_{place}_{number}", "completed", call)


def call_item(item_id: str, status: str, call: Mapping[str, Any]) -> dict[str, Any]:
    """A call as an item."""
    return {
        "type": "function_call",
        "id": item_id,
        "status": status,
        "call_id": call["id"],
        "name": call["function"]["name"],
        "arguments": call["function"]["arguments"],
    }


def _as_message(choice: Mapping[str, Any], response: str) -> Message:
    """What a response said and called, as the next one's template gets it."""
    calls = choice.get("tool_calls", [])
    if calls and choice["finish_reason"] != "tool_calls":
        raise ValidationFailed(
            f"{_PREVIOUS}: {response} was cut short within its calls; ask it again, with room to end them",
            field=_PREVIOUS,
        )
    return {"role": "assistant", "content": choice["text"]} | ({"tool_calls": calls} if calls else {})


def _part(message: Message) -> dict[str, Any]:
    if message["role"] == "assistant":
        return {"type": "output_text", "text": message["content"], "annotations": [], "logprobs": []}
    return {"type": "input_text", "text": message["content"]}


def _own_part(job_id: str) -> str:
    return job_id.removeprefix("job_")
