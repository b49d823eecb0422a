"""Submitting the request of a dead letter's job again, as the web process does."""

from sqlalchemy.orm import Session

from penstock.auth.models import Tenant
from penstock.auth.services import limits_of
from penstock.jobs import services as jobs
from penstock.services import Services


def resubmit(services: Services, session: Session, tenant_id: str, job_id: str, api_key_id: str | None) -> str:
    """The id of the new job. Raises what a submit raises."""
    limits = limits_of(session.get_one(Tenant, tenant_id))
    return jobs.retry(
        session,
        tenant_id,
        job_id,
        prompts=services.prompts,
        limits=services.quotas.job_limits(tenant_id, limits),
        api_key_id=api_key_id,
    ).id
