"""Text of jobs that succeeded: what a model was asked and what it wrote, to calibrate or to evaluate by.

`messages` are left to the model's own chat template. Jobs with tools, of token ids, or that wrote nothing are left out:
their text is not what the model saw.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from penstock.auth.system_tenant import SYSTEM_TENANT_ID
from penstock.jobs.filters import JobFilter, matching_ids
from penstock.jobs.models import Job
from penstock.jobs.states import JobState
from penstock.registry.models import Deployment

_PAGE: Final = 256


@dataclass(frozen=True, slots=True)
class JobText:
    """What one job was asked, by `messages` or by a `prompt`, and what it wrote."""

    messages: tuple[dict[str, str], ...]
    prompt: str
    written: str

    @property
    def to_calibrate(self) -> dict[str, Any]:
        """The line of a file that calibrates: the whole text."""
        return self._conversation or {"text": self.prompt + self.written}

    @property
    def to_evaluate(self) -> dict[str, Any]:
        """The line of a file that evaluates: what was written is what is scored."""
        return self._conversation or {"prompt": self.prompt, "completion": self.written}

    @property
    def _conversation(self) -> dict[str, Any]:
        answer = {"role": "assistant", "content": self.written}
        return {"messages": [*self.messages, answer]} if self.messages else {}


def texts_of_jobs(session: Session, model_name: str, tenant_id: str | None, count: int) -> list[JobText]:
    """At most `count`, of the newest jobs of the tenant first; of all tenants where it is None."""
    usable = (text_of(job.input, job.params, job.output) for job in _succeeded(session, model_name, tenant_id))
    return list(islice((text for text in usable if text is not None), count))


def text_of(asked: dict[str, Any], params: dict[str, Any], output: dict[str, Any] | None) -> JobText | None:
    """A job's text; None where it has none that the model saw just so."""
    written = next((choice["text"] for choice in (output or {}).get("choices", []) if choice["text"]), None)
    messages = asked.get("messages") or ()
    if written is None or params.get("tools") or any(message["role"] == "tool" for message in messages):
        return None
    if not messages and not asked.get("prompt"):
        return None
    said = tuple({"role": message["role"], "content": message["content"]} for message in messages)
    return JobText(said, asked.get("prompt") or "", written)


def _succeeded(session: Session, model_name: str, tenant_id: str | None) -> Iterator[Job]:
    before: str | None = None
    while True:
        ids = _page(session, model_name, tenant_id, before)
        if not ids:
            return
        jobs = select(Job).where(Job.id.in_(ids), Job.kind == "generate").order_by(Job.id.desc())
        yield from session.scalars(jobs)
        before = ids[-1]


def _page(session: Session, model_name: str, tenant_id: str | None, before: str | None) -> list[str]:
    if tenant_id is not None:
        wanted = JobFilter(states=[JobState.SUCCEEDED], model=model_name)
        return list(session.scalars(matching_ids(tenant_id, wanted, limit=_PAGE, before=before)))
    versions = select(Deployment.id).where(Deployment.model_name == model_name)
    found = select(Job.id).where(
        Job.deployment_id.in_(versions), Job.state == JobState.SUCCEEDED, Job.tenant_id != SYSTEM_TENANT_ID
    )
    if before is not None:
        found = found.where(Job.id < before)
    return list(session.scalars(found.order_by(Job.id.desc()).limit(_PAGE)))
