"""The spans of a run, written when it has ended: the wait, the run, and its way through the engine.

A step belongs to all jobs of its batch, so steps are no spans of a job: they are counted on the phase that they are in.
"""

import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from penstock.jobs.models import Job
from penstock.jobs.states import JobState
from penstock.tracing import Tracing, parent_of

from penstock_worker.running import Finished, GivenBack, RunningJob

_NANO: Final = 1_000_000_000
_REQUESTED: Final = {
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "max_tokens": "gen_ai.request.max_tokens",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
}


def trace_run(tracing: Tracing, job: RunningJob, *, device: str) -> None:
    """Write the spans of a run that has ended, as children of the span that submitted the job."""
    if not tracing.on:
        return
    row, parent = job.job, parent_of(job.job.traceparent)
    claimed = _epoch(job.claimed_at)
    wait = tracing.tracer.start_span("job.wait", parent, start_time=_moment(row.queued_at))
    wait.set_attribute("penstock.job.id", row.id)
    wait.end(claimed)
    run = tracing.tracer.start_span(
        f"{_operation(row)} {row.model_name}", parent, kind=SpanKind.CONSUMER, start_time=claimed
    )
    run.set_attributes(_asked(row) | _answered(job) | {"penstock.run.device": device, "penstock.run.fence": job.fence})
    _tell_ending(run, job)
    for name, (start, end), steps in job.meter.phases:
        phase = tracing.tracer.start_span(f"engine.{name}", set_span_in_context(run, parent), start_time=_epoch(start))
        phase.set_attribute("penstock.engine.steps", steps)
        phase.end(_epoch(end))
    run.end(time.time_ns())


def _asked(row: Job) -> dict[str, Any]:
    asked = {_REQUESTED[name]: value for name, value in row.params.items() if name in _REQUESTED and value is not None}
    return asked | {
        "gen_ai.operation.name": _operation(row),
        "gen_ai.provider.name": "penstock",
        "gen_ai.request.model": row.model,
        "gen_ai.request.choice.count": row.params.get("n", 1),
        "gen_ai.request.seed": row.seed,
        "penstock.job.id": row.id,
        "penstock.tenant.id": row.tenant_id,
    }


def _answered(job: RunningJob) -> dict[str, Any]:
    spent, reasons = job.meter.spent, _reasons(job)
    answered: dict[str, Any] = {
        "gen_ai.response.id": job.id,
        "gen_ai.response.model": f"{job.job.model_name}:{job.job.model_version}",
        "gen_ai.usage.input_tokens": len(job.prompt_ids),
        "gen_ai.usage.cache_read.input_tokens": spent.cached_tokens or 0,
        "gen_ai.usage.output_tokens": sum(len(choice.token_ids) for choice in job.choices),
        "penstock.device.seconds": spent.device_seconds,
        "penstock.recomputed.tokens": spent.recomputed_tokens,
    }
    if spent.prefill_seconds is not None and spent.queue_seconds is not None:
        answered["gen_ai.response.time_to_first_chunk"] = spent.queue_seconds + spent.prefill_seconds
    return answered | ({"gen_ai.response.finish_reasons": reasons} if reasons else {})


def _reasons(job: RunningJob) -> Sequence[str]:
    return [choice.finish_reason for choice in job.choices if choice.finish_reason is not None]


def _tell_ending(run: Span, job: RunningJob) -> None:
    match job.ending:
        case Finished(state=JobState.FAILED, error=error):
            told: Mapping[str, Any] = error or {}
            run.set_attribute("error.type", told.get("code", "internal_error"))
            run.set_status(Status(StatusCode.ERROR, told.get("message")))
        case Finished(state=state):
            run.set_attribute("penstock.job.state", state.value)
        case GivenBack(outcome=outcome, reason=reason):
            run.set_attribute("penstock.run.outcome", outcome.value)
            run.add_event("run.given_back", {"reason": reason})
        case _:
            run.set_attribute("penstock.run.outcome", "lease_lost")


def _operation(row: Job) -> str:
    return "chat" if "messages" in row.input else "text_completion"


def _moment(at: datetime) -> int:
    return int(at.timestamp() * _NANO)


def _epoch(steady: float) -> int:
    """A moment of the steady clock, which all processes of a machine share, in nanoseconds since 1970."""
    return time.time_ns() - int((time.perf_counter() - steady) * _NANO)
