"""How a new answer to a stored request differs from the stored one."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import TypeAdapter

from penstock.jobs.models import Job
from penstock.jobs.states import JobState
from penstock.replay.internal import answer_of
from penstock.rollouts.failures import model_may_be_to_blame


@dataclass(frozen=True, slots=True)
class Answered:
    """One side: how long the first choice is and how it ended, and what the whole job took."""

    tokens: int
    finish_reason: str | None
    seconds: float | None
    """From its first run's beginning to its end."""
    first_token_seconds: float | None
    device_seconds: float | None
    valid: bool | None
    """Whether the text is what the request's format wants; none where it wants none that can be checked."""
    error: str | None = None
    """The code of a job that failed, or the state of one that ended otherwise without an answer."""
    failed: bool = False
    """Whether the version may be to blame for that."""
    runs: int = 1


@dataclass(frozen=True, slots=True)
class Freed:
    """A new answer beside the stored one. A new one that failed has an `error`; they are compared no further then, nor
    where the stored one failed."""

    stored: Answered
    answered: Answered
    error: str | None = None
    exact: bool | None = None
    """The same tokens, to the last."""
    first_difference: int | None = None
    """The first position at which the tokens differ, or one of the answers has ended."""


FREED: Final = TypeAdapter(Freed)


def compare_answers(stored: Job, new: Job) -> Freed:
    """The first choices of both, token by token."""
    sides = _answered(stored), _answered(new)
    if sides[0].error is not None or sides[1].error is not None:
        return Freed(*sides, error=sides[1].error)
    one, other = answer_of(stored), answer_of(new)
    shared = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    exact = one == other
    return Freed(*sides, exact=exact, first_difference=None if exact else shared)


def is_valid(wanted: Mapping[str, Any] | None, text: str) -> bool | None:
    """Whether the text has the form that a stored `response_format` asks for; none where that cannot be told."""
    match wanted:
        case {"type": "json_object"}:
            return _is_json(text, {"type": "object"})
        case {"type": "json_schema", "schema": schema}:
            return _is_json(text, schema)
        case {"type": "regex", "regex": pattern}:
            return re.fullmatch(pattern, text) is not None
        case {"type": "choice", "choice": texts}:
            return text in texts
        case _:
            return None


def _is_json(text: str, schema: Mapping[str, Any]) -> bool:
    """Of a schema only its type and required members are looked at: the grammar held it to the rest while it wrote."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        return False
    return schema.get("type") != "object" or (
        isinstance(found, dict) and set(schema.get("required", ())) <= found.keys()
    )


def _answered(job: Job) -> Answered:
    choice = ((job.output or {}).get("choices") or [{}])[0]
    wanted = None if job.params.get("tools") else job.params.get("response_format")
    return Answered(
        tokens=len(answer_of(job)),
        finish_reason=choice.get("finish_reason"),
        seconds=_between(job, "finished_at"),
        first_token_seconds=_between(job, "first_token_at"),
        device_seconds=(job.account or {}).get("device_seconds"),
        valid=is_valid(wanted, choice.get("text", "")) if wanted else None,
        error=None if job.state == JobState.SUCCEEDED else (job.error or {}).get("code") or job.state,
        failed=model_may_be_to_blame(job.state, job.error),
        runs=job.runs,
    )


def _between(job: Job, end: str) -> float | None:
    ended = getattr(job, end)
    return None if ended is None or job.started_at is None else (ended - job.started_at).total_seconds()
