"""How a request of these kinds comes in: who may send it, and what it means."""

from collections.abc import Callable

from sqlalchemy.orm import Session

from penstock.auth.permits import refuse_model, refuse_scope
from penstock.auth.services import Principal, Scope
from penstock.compressions.schemas import EvaluateRequest, QuantizeRequest
from penstock.compressions.services import Submission, complete, locate, needs_operator, submit
from penstock.jobs.models import Job
from penstock.routing.services import model_name_of
from penstock.services import Services


def submission_on_files(
    services: Services, principal: Principal, request: QuantizeRequest | EvaluateRequest, traceparent: str | None
) -> Callable[[Session], Job]:
    """What submits the job, in whichever transaction. MLflow is asked here, before it, for what only it knows.

    Needs the scope `admin`: such a job takes a worker for long, and makes what every tenant of the installation sees.
    """
    refuse_scope(principal, Scope.ADMIN, "kind")
    if (field := needs_operator(request)) is not None:
        refuse_scope(principal, Scope.OPERATOR, field)
    for name in _names(request):
        refuse_model(principal, name)
    with services.database.transaction() as session:
        located = locate(session, request)
    asked = complete(services.settings, request, located)
    limits = services.quotas.job_limits(principal.tenant_id, principal.limits)
    submission = Submission(principal.tenant_id, limits.max_queued_jobs, traceparent, principal.key_id)
    return lambda session: submit(session, asked, submission)


def _names(request: QuantizeRequest | EvaluateRequest) -> set[str]:
    names = {model_name_of(request.model)}
    if isinstance(request, EvaluateRequest):
        return names | {model_name_of(request.against)}
    return names | ({request.name} if request.name is not None else set())
