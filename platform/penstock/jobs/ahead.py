"""What a submit finds out before its transaction, which must be short: PostgreSQL ends one that is idle for seconds."""

from contextlib import suppress

from penstock.errors import PenstockError
from penstock.jobs.asked import Asked, PromptCounter
from penstock.jobs.schemas import JobRequest
from penstock.jobs.structure import structure_of
from penstock.registry.models import Deployment
from penstock.services import Services


def prepare(services: Services, request: JobRequest) -> Asked:
    """The request, judged for the versions that its model's jobs went to a moment ago: two in a rollout.

    The transaction chooses anew; where it chooses another version, it judges for that one itself.
    """
    asked = Asked.of(request)
    with suppress(PenstockError):  # such as a model that is not there
        for deployment in services.routes.of(request.model).arms:
            judge(services.prompts, deployment, asked)
    return asked


def judge(prompts: PromptCounter, deployment: Deployment, asked: Asked) -> None:
    """Load the model's tokenizer, count the prompt, compile what the output is held to; each is kept for the submit.

    What is wrong is told by the submit, in its order.
    """
    with suppress(PenstockError):
        asked.count(prompts, deployment)
        if asked.wants_structure and (structure := structure_of(asked.params, prompts.get(deployment))) is not None:
            prompts.vocabulary(deployment).problem_with(*structure)
