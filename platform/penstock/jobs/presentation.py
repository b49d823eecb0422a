"""How a job looks from outside: one document for REST, webhooks and the portal alike."""

from typing import Any

from penstock.clock import iso
from penstock.jobs.models import Job
from penstock.jobs.states import JobClass


def job_document(job: Job) -> dict[str, Any]:
    """The public document of a job, as its row says. Times are RFC 3339 in UTC; counts are tokens."""
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
        "params": job.params | {"seed": job.seed},
        "class": JobClass(job.job_class).name.lower(),
        "priority": job.priority,
        "deadline": iso(job.deadline),
        "budget": {"tokens": job.token_budget} if job.token_budget is not None else None,
        "tags": job.tags,
        "metadata": job.user_metadata,
        "webhook": job.webhook,
        "retry_of": job.retry_of,
        "output": job.output,
        "error": job.error,
        "usage": {
            "prompt_tokens": job.prompt_tokens,
            "cached_tokens": job.cached_tokens,
            "output_tokens": job.output_tokens,
        },
        "runs": job.runs,
        "cancel_requested_at": iso(job.cancel_requested_at),
        "created_at": iso(job.created_at),
        "queued_at": iso(job.queued_at),
        "started_at": iso(job.started_at),
        "first_token_at": iso(job.first_token_at),
        "finished_at": iso(job.finished_at),
    }
