"""How a job looks from outside: one document for REST, webhooks and the portal alike."""

from typing import Any, Final

from penstock.clock import iso
from penstock.jobs.models import Job
from penstock.jobs.states import JobClass
from penstock.registry.models import LANE_ID

_UNCOUNTED: Final = dict.fromkeys(
    ("computed_tokens", "recomputed_tokens", "device_seconds", "recomputed_seconds", "energy")
)
"""What is counted when the job has ended, over all its runs."""


def job_document(job: Job) -> dict[str, Any]:
    """The public document of a job, as its row says. Times are RFC 3339 in UTC; counts are tokens."""
    account = job.account or {}
    return {
        "id": job.id,
        "object": "job",
        "kind": job.kind,
        "status": job.state,
        "model": job.model,
        "model_name": job.model_name,
        "model_version": job.model_version,
        "routing": job.routing,
        "input": job.input,
        "params": params_of(job),
        "class": JobClass(job.job_class).name.lower(),
        "priority": job.priority,
        "deadline": iso(job.deadline),
        "budget": budget_of(job),
        "tags": job.tags,
        "metadata": job.user_metadata,
        "webhook": job.webhook,
        "retry_of": job.retry_of,
        "batch": {"id": job.batch_id, "line": job.batch_line} if job.batch_id is not None else None,
        "output": job.output,
        "error": job.error,
        "usage": {
            "prompt_tokens": job.prompt_tokens,
            "cached_tokens": job.cached_tokens,
            "output_tokens": job.output_tokens,
            **(_UNCOUNTED | {name: value for name, value in account.items() if name in _UNCOUNTED}),
        },
        "cost": account.get("cost"),
        "runs": job.runs,
        "cancel_requested_at": iso(job.cancel_requested_at),
        "created_at": iso(job.created_at),
        "queued_at": iso(job.queued_at),
        "started_at": iso(job.started_at),
        "first_token_at": iso(job.first_token_at),
        "finished_at": iso(job.finished_at),
    }


def params_of(job: Job) -> dict[str, Any]:
    """The job's parameters, with its seed; of a score, which draws nothing, those that it has.

    What works on a model's files has none: all that was asked is its input.
    """
    if job.deployment_id == LANE_ID:
        return {}
    if job.kind == "score":
        return {"prompt_logprobs": job.params["prompt_logprobs"]}
    return job.params | {"seed": job.seed}


def budget_of(job: Job) -> dict[str, Any] | None:
    """The job's own budget, as it was asked for."""
    limit = (job.terms or {}).get("limit")
    tokens = {"tokens": job.token_budget} if job.token_budget is not None else {}
    money = {"amount": limit, "currency": job.terms["currency"]} if job.terms and limit is not None else {}
    return tokens | money or None
