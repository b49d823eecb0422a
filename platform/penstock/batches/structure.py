"""What takes long of judging a line, done before its transaction: a tokenizer is loaded, a grammar compiled.

Both are kept where the submit looks for them, which then finds them at once while it holds locks.
"""

from collections.abc import Iterable

from penstock.batches.workshop import Workshop
from penstock.errors import PenstockError
from penstock.jobs.schemas import JobRequest
from penstock.jobs.structure import structure_of
from penstock.routing.services import choose


def compile_ahead(workshop: Workshop, requests: Iterable[JobRequest]) -> None:
    """Judge the structure that these lines ask for. What is wrong is told by the submit, of its line."""
    by_model: dict[str, list[JobRequest]] = {}
    for request in requests:
        by_model.setdefault(request.model, []).append(request)
    for model, group in by_model.items():
        try:
            _judge(workshop, model, group)
        except PenstockError:
            continue  # such as a model that is gone


def _judge(workshop: Workshop, model: str, requests: Iterable[JobRequest]) -> None:
    with workshop.database.transaction() as session:
        deployment = choose(session, model).deployment
    vocabulary, tokenizer = workshop.prompts.vocabulary(deployment), workshop.prompts.get(deployment)
    for request in requests:
        structure = structure_of(request.stored_params(), tokenizer)
        if structure is not None:
            vocabulary.problem_with(*structure)
