"""What a submit finds out before its transaction, which must be short: PostgreSQL ends one that is idle for seconds."""

from contextlib import suppress

from penstock.errors import PenstockError
from penstock.jobs.params import grammar_of
from penstock.jobs.schemas import JobRequest
from penstock.routing.services import choose
from penstock.services import Services


def judge_structure(services: Services, request: JobRequest) -> None:
    """Compile the grammar that the request asks for, if any, so that its submit finds the verdict at hand.

    What is wrong is told by the submit, in its order.
    """
    wanted = request.params.response_format
    if wanted is None:
        return
    with suppress(PenstockError):
        with services.database.transaction() as session:
            deployment = choose(session, request.model).deployment
        services.prompts.vocabulary(deployment).problem_with(*grammar_of(wanted.stored()))
