"""What takes long of judging lines, done before their transaction: tokenizers are loaded, prompts counted, grammars
compiled. The submit finds it all at hand while it holds locks.
"""

from collections.abc import Iterable
from contextlib import suppress

from penstock.batches.workshop import Workshop
from penstock.errors import PenstockError
from penstock.jobs.ahead import judge
from penstock.jobs.asked import Asked
from penstock.routing.services import find


def prepare(workshop: Workshop, lines: Iterable[Asked]) -> None:
    """Judge what these lines ask for. What is wrong is told by the submit, of its line."""
    by_model: dict[str, list[Asked]] = {}
    for asked in lines:
        by_model.setdefault(asked.request.model, []).append(asked)
    for model, group in by_model.items():
        with suppress(PenstockError):  # such as a model that is gone
            with workshop.database.transaction() as session:
                arms = find(session, model).arms
            for asked in group:
                for deployment in arms:
                    judge(workshop.prompts, deployment, asked)
