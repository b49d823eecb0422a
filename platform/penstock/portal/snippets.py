"""A job's request as a command that does the same through the API. The key is a variable: no secret is in a page."""

import json
import shlex
from typing import Any

from penstock.jobs.models import Job
from penstock.jobs.params import asked_for
from penstock.jobs.presentation import budget_of
from penstock.jobs.states import JobClass
from penstock.registry.models import LANE_ID


def request_body(job: Job) -> dict[str, Any]:
    """The job's request, leaving out whatever is a default."""
    body = _on_files(job) if job.deployment_id == LANE_ID else _on_an_engine(job)
    optional = {
        "budget": budget_of(job),
        "priority": job.priority,
        "tags": job.tags,
        "metadata": job.user_metadata,
        "webhook": job.webhook,
    }
    return body | {name: value for name, value in optional.items() if value}


def as_curl(job: Job, address: str) -> str:
    """The request as a curl command for a POSIX shell; `address` is the public URL of the platform."""
    body = json.dumps(request_body(job), indent=2, ensure_ascii=False)
    return (
        f"curl {shlex.quote(address + '/v1/jobs')} \\\n"
        '  -H "Authorization: Bearer $PENSTOCK_API_KEY" \\\n'
        "  -H 'Content-Type: application/json' \\\n"
        f"  -d {shlex.quote(body)}"
    )


def _on_an_engine(job: Job) -> dict[str, Any]:
    body: dict[str, Any] = {"model": job.model, "input": job.input, "params": _asked(job)}
    if job.job_class != JobClass.INTERACTIVE:
        body["class"] = JobClass(job.job_class).name.lower()
    return body


def _on_files(job: Job) -> dict[str, Any]:
    asked = {name: value for name, value in job.input.items() if value is not None}
    return {"kind": job.kind, "model": job.model, **asked}


def _asked(job: Job) -> dict[str, Any]:
    """What was asked for, the temperature in any case, and the seed that was drawn."""
    always = {name: job.params[name] for name in ("temperature",) if name in job.params}
    return always | asked_for(job.params) | {"seed": job.seed}
