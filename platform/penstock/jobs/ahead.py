"""What a submit finds out before its transaction, which must be short: PostgreSQL ends one that is idle for seconds."""

from contextlib import suppress

from penstock.errors import PenstockError
from penstock.jobs.intake import Asked, PromptCounter
from penstock.jobs.schemas import JobRequest
from penstock.jobs.structure import structure_of
from penstock.registry.models import Deployment
from penstock.routing.services import choose
from penstock.services import Services


def judge_structure(services: Services, request: JobRequest) -> None:
    """Compile the grammar that the request asks for, if any, so that its submit finds the verdict at hand.

    What is wrong is told by the submit, in its order.
    """
    if request.params.response_format is None and not request.params.tools:
        return
    with suppress(PenstockError):
        with services.database.transaction() as session:
            deployment = choose(session, request.model).deployment
        judge(services.prompts, deployment, Asked.of(request))


def judge(prompts: PromptCounter, deployment: Deployment, asked: Asked) -> None:
    """Load the model's tokenizer, count the prompt, compile what the output is held to; each is kept for the submit.

    What is wrong is told by the submit, in its order.
    """
    with suppress(PenstockError):
        asked.count(prompts, deployment)
        structure = structure_of(asked.params, prompts.get(deployment))
        if structure is not None:
            prompts.vocabulary(deployment).problem_with(*structure)
