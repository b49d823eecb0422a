"""Figures and facts in words that people read: durations, counts, why a version serves a job, what an event says."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from penstock.jobs.events import EventType
from penstock.jobs.models import Event, Job, JobRun
from penstock.jobs.params import asked_for
from penstock.jobs.states import JobState, RunOutcome
from penstock.registry.models import LANE_ID

_OUTCOMES: Final[Mapping[str, str]] = {
    RunOutcome.FINISHED: "Finished",
    RunOutcome.CRASHED: "Engine crashed",
    RunOutcome.CRASHED_ALONE: "Engine crashed on this job",
    RunOutcome.LEASE_LOST: "Worker went silent",
    RunOutcome.HANDED_BACK: "Handed back",
}

_FINISH_REASONS: Final[Mapping[str, str]] = {
    "stop": "The model ended its answer",
    "length": "Cut at the token limit",
    "tool_calls": "The model ended its answer to have its calls run",
    "cancelled": "Stopped by a cancel",
    "deadline": "Stopped at its deadline",
}


def duration(seconds: float | None) -> str:
    """`4 ms`, `1.24 s`, `2 m 03 s`, `1 h 05 m`, or a dash for what has not happened."""
    if seconds is None:
        return "–"
    if seconds < 1:
        return f"{max(seconds, 0) * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} m {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} m"


def between(start: datetime | None, end: datetime | None) -> float | None:
    """Seconds from one moment to another, or None while either is missing."""
    return (end - start).total_seconds() if start is not None and end is not None else None


def short_id(identifier: str) -> str:
    """The end of an identifier, where they differ: `…7q2m8x1k`."""
    return f"…{identifier[-8:]}"


def shown_state(job: Job) -> str:
    """The job's state, with a requested cancel that its holder has yet to honour as `cancelling`."""
    waiting_for_cancel = job.state == JobState.RUNNING and job.cancel_requested_at is not None
    return "cancelling" if waiting_for_cancel else job.state


def why_this_version(job: Job) -> str:
    """The routing decision as a sentence."""
    rule = job.routing.get("rule")
    if rule == "version":
        return f"The job asked for version {job.model_version} by number."
    if rule == "alias" and job.routing.get("alias") == "champion":
        return f"Version {job.model_version} was the champion of {job.model_name} when the job was submitted."
    if rule == "alias":
        return f"Version {job.model_version} had the alias {job.routing.get('alias')} when the job was submitted."
    return f"Routed to version {job.model_version}."


def telling_params(job: Job) -> dict[str, str]:
    """The parameters that say something: those which are not at a value that changes nothing."""
    told = {name: job.params[name] for name in ("temperature",) if name in job.params} | asked_for(job.params)
    return {name: _value(value) for name, value in told.items()}


def excerpt(job: Job, length: int = 160) -> str:
    """What the job said, or else why it failed or what it was asked, on one line."""
    said = " ".join(_told(choice) for choice in (job.output or {}).get("choices", [])) or made(job)
    asked = job.input.get("prompt") or " ".join(message["content"] for message in job.input.get("messages", [])[-1:])
    if job.deployment_id == LANE_ID:
        asked = job.kind
    error = (job.error or {}).get("message", "")
    return " ".join((said or error or f"Asked: {asked}")[: length * 2].split())[:length]


def made(job: Job) -> str:
    """Of a job that works on a model's files: the version that it made or judged. Empty for others, and before."""
    output = job.output or {}
    if output.get("version") is None:
        return ""
    share = f", {output['ratio']:.0%} of its bytes" if output["ratio"] is not None else ""
    return f"{output['model']} version {output['version']}, beside {output['against']}{share}"


def _told(choice: Mapping[str, Any]) -> str:
    """What the choice says and calls, on one line."""
    return " ".join([choice["text"], *calls_of(choice)])


def calls_of(choice: Mapping[str, Any]) -> list[str]:
    """The tools that the choice calls, each as `name {arguments}`."""
    called = [call["function"] for call in choice.get("tool_calls") or ()]
    return [f"{function['name']} {function['arguments']}" for function in called]


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return ", ".join(repr(member) for member in value)
    return "yes" if value is True else f"{value:g}" if isinstance(value, float) else str(value)


def run_outcome(run: JobRun) -> str:
    """How a run ended, in words."""
    return _OUTCOMES.get(run.outcome or "", "Running")


def finish_reason(reason: str | None) -> str:
    """Why a choice's text ends where it does."""
    return _FINISH_REASONS.get(reason or "", f"Ended: {reason}" if reason else "Not finished")


def event_line(event: Event) -> tuple[str, str]:
    """What happened, and a detail to it."""
    data: Mapping[str, Any] = event.data
    match event.type:
        case EventType.QUEUED:
            return "Submitted", f"for version {data.get('model_version')}"
        case EventType.RUNNING:
            return f"Run {data.get('run')} started", f"on worker {short_id(str(data.get('worker')))}"
        case EventType.PROGRESS:
            return f"{str(data.get('stage')).capitalize()}: {data.get('done')} of {data.get('of')}", str(
                data.get("what")
            )
        case EventType.REQUEUED:
            return "Back in the queue", str(data.get("reason", ""))
        case EventType.CANCEL_REQUESTED:
            return "Cancel requested", "it stops at the next token"
        case EventType.REWOUND:
            return "Output rewound", f"to token {data.get('position')}: what followed was lost and is generated again"
        case EventType.FAILED:
            return "Failed", str((data.get("error") or {}).get("message", ""))
        case _:
            tokens = int(data.get("output_tokens", 0))
            return event.type.removeprefix("job.").capitalize(), f"with {tokens} token{'' if tokens == 1 else 's'}"
