"""A request as a command or program that does the same. The key is a variable: no secret is in a page."""

import json
import shlex
from collections.abc import Mapping
from pprint import pformat
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


def as_curl(body: Mapping[str, Any], address: str) -> str:
    """A job's request as a curl command for a POSIX shell; `address` is the public URL of the platform."""
    text = json.dumps(body, indent=2, ensure_ascii=False)
    return (
        f"curl {shlex.quote(address + '/v1/jobs')} \\\n"
        '  -H "Authorization: Bearer $PENSTOCK_API_KEY" \\\n'
        "  -H 'Content-Type: application/json' \\\n"
        f"  -d {shlex.quote(text)}"
    )


def as_python(body: Mapping[str, Any], address: str) -> str:
    """The same as a program for our client, or where that has no call for it, for `httpx`. It prints the answer."""
    if not _client_can(body):
        return _by_httpx(body, address)
    arguments = "".join(f"        {name}={_literal(value)},\n" for name, value in _arguments(body).items())
    return (
        "import os\n\nfrom penstock import Client\n\n"
        f'with Client({_literal(address)}, os.environ["PENSTOCK_API_KEY"]) as client:\n'
        f"    job = client.jobs.submit(\n{arguments}    )\n"
        "    print(client.jobs.wait(job.id).text)\n"
    )


def _client_can(body: Mapping[str, Any]) -> bool:
    """Whether the client's own call sends all of it."""
    return "kind" not in body and {*body["input"]} <= {"prompt", "messages"} and {*body.get("budget", {})} <= {"tokens"}


def _arguments(body: Mapping[str, Any]) -> dict[str, Any]:
    """The request as the client's arguments."""
    same = {name: body[name] for name in ("model", "params", "priority", "tags", "metadata", "webhook") if name in body}
    budget = body.get("budget", {})
    renamed = {"job_class": body.get("class"), "token_budget": budget.get("tokens")}
    return same | dict(body["input"]) | {name: value for name, value in renamed.items() if value is not None}


def _by_httpx(body: Mapping[str, Any], address: str) -> str:
    return (
        "import os\n\nimport httpx\n\n"
        f"job = httpx.post(\n    {_literal(address + '/v1/jobs')},\n"
        '    headers={"Authorization": f"Bearer {os.environ[\'PENSTOCK_API_KEY\']}"},\n'
        f"    json={_literal(dict(body), depth=4)},\n)\nprint(job.json())\n"
    )


def _literal(value: Any, depth: int = 8) -> str:
    """Python for the value, long ones over several lines, indented by `depth`."""
    return pformat(value, width=88, sort_dicts=False).replace("\n", "\n" + " " * depth)


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
