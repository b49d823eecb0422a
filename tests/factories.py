"""Rows for tests, each with sensible values and real services behind it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.auth.models import Tenant
from penstock.clock import utc_now
from penstock.ids import new_id
from penstock.jobs import services as jobs
from penstock.jobs.models import Job
from penstock.jobs.schemas import JobRequest
from penstock.registry.models import Deployment, Hosting, RoutingPolicy, Worker
from penstock.registry.tokenizer import ModelTokenizer
from penstock.registry.vocabulary import Vocabulary
from penstock.rollouts.models import Rollout
from penstock.rollouts.policy import Policy
from sqlalchemy.orm import Session

DEMO_MODEL = Path(__file__).parents[1] / "examples" / "invoices" / "model"


@dataclass(frozen=True)
class WordCounter:
    """Counts a prompt's words: a tokenizer for tests that need no model folder. Its tokens are the demo model's."""

    def count(self, deployment: Deployment, job_input: dict[str, Any], tools: Sequence[dict[str, Any]] = ()) -> int:
        if "token_ids" in job_input:
            return len(job_input["token_ids"]) + len(job_input.get("continuation_token_ids", ()))
        text = job_input.get("prompt") or " ".join(message["content"] for message in job_input["messages"])
        return len((text + job_input.get("continuation", "")).split())

    def get(self, deployment: Deployment) -> ModelTokenizer:
        return ModelTokenizer.from_folder(DEMO_MODEL)

    def vocabulary(self, deployment: Deployment) -> Vocabulary:
        return Vocabulary(DEMO_MODEL / "tokenizer.json", size=768, eos_ids=[1])


def make_tenant(session: Session, name: str | None = None) -> Tenant:
    """A tenant with a webhook secret."""
    tenant = Tenant(id=new_id("ten"), name=name or new_id("name"), webhook_secret="whsec_dGVzdHMtb25seS10ZXN0cy1vbmx5")
    session.add(tenant)
    session.flush()
    return tenant


def make_deployment(
    session: Session, name: str = "tiny", version: str = "1", *, source: str = "/nowhere", champion: bool = True
) -> Deployment:
    """A deployment, by default what the model's champion alias names."""
    deployment = Deployment(
        id=new_id("dep"),
        model_name=name,
        model_version=version,
        source=source,
        manifest={},
        recipe={"scheme": "none"},
        context_length=256,
        digest=f"digest of {name} {version}",
    )
    session.add(deployment)
    session.flush()
    if champion:
        session.merge(
            RoutingPolicy(model_name=name, champion_id=deployment.id, champion_since=utc_now(), reason="made by a test")
        )
        session.flush()
    return deployment


def make_worker(session: Session, deployment: Deployment, *, slots: int = 4, state: str = "ready") -> Worker:
    """A live worker that hosts the deployment."""
    worker = Worker(id=new_id("wrk"), hostname="test", pid=1, device="cpu", slots=slots)
    session.add(worker)
    session.flush()
    session.add(Hosting(worker_id=worker.id, deployment_id=deployment.id, state=state))
    session.flush()
    return worker


def submit_job(session: Session, tenant: Tenant, *, max_queued_jobs: int = 1000, **body: Any) -> Job:
    """Submit through the real service; `body` overrides members of the request."""
    request = JobRequest.model_validate({"model": "tiny", "input": {"prompt": "hello there"}} | body)
    return jobs.submit(
        session,
        tenant_id=tenant.id,
        asked=jobs.Asked.of(request),
        prompts=WordCounter(),
        limits=jobs.Limits(max_queued_jobs=max_queued_jobs),
    )


def make_rollout(session: Session, champion: Deployment, candidate: Deployment, **given: Any) -> Rollout:
    """A rollout in its canary, at a share of one half; `given` are columns. Nothing comes before in its policy."""
    policy = given.pop("policy", None) or Policy(offline=None, shadow=None)
    begun = {"state": "canary", "step": 0, "share": 0.5, "unit": "job", "fence": 1, "seed": "a test's own"}
    document = {"policy": policy.model_dump(mode="json"), "policy_version": policy.version}
    versions = {"model_name": champion.model_name, "champion_id": champion.id, "candidate_id": candidate.id}
    rollout = Rollout(id=new_id("rol"), **(begun | document | versions | given))
    session.add(rollout)
    session.flush()
    return rollout
