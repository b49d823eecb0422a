"""The route by which a tenant deletes a job."""

from typing import Final

from apiflask import APIBlueprint

from penstock.auth.services import Principal, Scope
from penstock.endpoints import Contract, endpoint
from penstock.retention.deletion import delete_job as delete
from penstock.services import current_services

routes: Final = APIBlueprint("api_retention", __name__, url_prefix="/v1/jobs", tag="Jobs")


@endpoint(
    routes,
    "DELETE",
    "/<job_id>",
    Contract(scope=Scope.JOBS_WRITE, problems=(404, 409), responses={204: {"description": "It is gone"}}),
)
def delete_job(principal: Principal, job_id: str) -> tuple[str, int]:
    """Delete a finished job for good: request, output, tokens, events, deliveries and stored response.

    Its usage stays in the totals. A job of a batch goes once that has ended and its files are deleted.
    """
    services = current_services()
    with services.database.transaction() as session:
        delete(session, services.journal, principal.tenant_id, job_id)
    return "", 204
