"""Figures and facts in words that people read: durations, counts, why a version serves a job, what an event says."""

import json
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from penstock.jobs.events import EventType
from penstock.jobs.models import Event, Job, JobRun
from penstock.jobs.params import asked_for
from penstock.jobs.states import JobClass, JobState, RunOutcome
from penstock.registry.models import LANE_ID
from penstock.webhooks.models import WebhookAttempt

_STEP: Final = 1000
_SUBJECTS: Final[Mapping[str, str]] = {
    "job": "Jobs", "output": "Jobs", "batch": "Batches", "bulk": "Many at once", "rollout": "Rollouts",
    "model": "Models", "webhook_endpoint": "Webhooks",
}  # fmt: skip
_NUMBER_LIST: Final = re.compile(r"\[\n\s+(-?[\d.e+-]+(?:,\n\s+-?[\d.e+-]+)*)\n\s+\]")
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
    if rule == "rollout":
        return _why_in_a_rollout(job)
    if rule == "rerouted":
        return f"Version {job.model_version} took it over from version {job.routing.get('from')}: a rollout ended."
    return f"Routed to version {job.model_version}."


def _why_in_a_rollout(job: Job) -> str:
    share, gate = job.routing.get("share"), str(job.routing.get("gate", "")).replace("ab", "A/B")
    part = f", which gets {share:.0%} of the jobs" if isinstance(share, float) else ""
    return f"Version {job.model_version} is the {job.routing.get('arm')} of a rollout at its {gate} gate{part}."


def cost(job: Job) -> str:
    """What the job cost, `0.0012 EUR`; a dash where it has no price, or has not ended."""
    told = (job.account or {}).get("cost")
    return f"{money(told['amount'])} {told['currency']}" if told else "–"


def money(amount: Decimal | str) -> str:
    """An amount of money without the noughts that say nothing, and with two figures behind the point at least."""
    whole, _, part = f"{Decimal(amount):f}".partition(".")
    return f"{int(whole):,}.{part.rstrip('0').ljust(2, '0')}"


def about(amount: Decimal) -> str:
    """An amount of money for a glance: from one unit on, two figures behind the point."""
    return money(round(amount, 2) if amount >= 1 else amount)


def size(count: int | None) -> str:
    """Bytes as people say them: `812 B`, `4.2 kB`, `1.3 GB`; a dash while nobody knows."""
    if count is None:
        return "–"
    figure, units = float(count), iter(("kB", "MB", "GB", "TB"))
    if count < _STEP:
        return f"{count} B"
    unit = ""
    while figure >= _STEP and unit != "TB":
        figure, unit = figure / _STEP, next(units)
    return f"{figure:.1f} {unit}"


def count(number: int, one: str, many: str | None = None) -> str:
    """`1 job`, `12,000 jobs`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def as_json(document: Any) -> str:
    """JSON for reading: indented, but each list of numbers on one line."""
    text = json.dumps(document, indent=2, ensure_ascii=False)
    return _NUMBER_LIST.sub(lambda numbers: f"[{' '.join(numbers[1].split())}]", text)


def by_subject(events: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Names of events by what they are about, in the order in which they come."""
    groups: dict[str, list[str]] = {}
    for name in events:
        subject = name.partition(".")[0]
        groups.setdefault(_SUBJECTS.get(subject, subject.replace("_", " ").capitalize()), []).append(name)
    return list(groups.items())


def of_class(job: Job) -> str:
    """The class that the job waits in."""
    return JobClass(job.job_class).name.capitalize()


_FILTERS: Final[Mapping[str, str]] = {
    "status": "Status", "model": "Model", "version": "Version", "tag": "Tag", "class": "Class", "batch": "Batch",
    "key": "Key", "error": "Error", "created_after": "Submitted after", "created_before": "Submitted before",
    "finished_after": "Ended after", "finished_before": "Ended before",
}  # fmt: skip


def filter_lines(members: Mapping[str, str]) -> list[tuple[str, str]]:
    """The filters of a list as a name and a value each, in words."""
    return [(_FILTERS[name], value.replace(",", ", ")) for name, value in members.items()]


def attempt_line(attempt: WebhookAttempt) -> str:
    """What came of one try of a delivery: `200 in 84 ms`, or why nothing did."""
    took = duration(attempt.milliseconds / 1000)
    return f"{attempt.status_code} in {took}" if attempt.status_code is not None else f"{attempt.error}, after {took}"


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
        case EventType.REROUTED:
            return "Taken over by another version", f"version {data.get('model_version') or data.get('version')}"
        case EventType.REQUEUED:
            return "Back in the queue", str(data.get("reason", ""))
        case EventType.REROUTED:
            moved = f"from version {data.get('from')} to {data.get('model_version')}"
            return "Sent to another version", f"{moved}: {data.get('reason')}"
        case EventType.CANCEL_REQUESTED:
            return "Cancel requested", "it stops at the next token"
        case EventType.REWOUND:
            return "Output rewound", f"to token {data.get('position')}: what followed was lost and is generated again"
        case EventType.FAILED:
            return "Failed", str((data.get("error") or {}).get("message", ""))
        case _:
            tokens = int(data.get("output_tokens", 0))
            return event.type.removeprefix("job.").capitalize(), f"with {tokens} token{'' if tokens == 1 else 's'}"
