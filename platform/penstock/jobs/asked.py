"""A request on its way in, and what is known of its prompt by then."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from penstock.jobs.fitness import Vocabulary, refuse_unfit
from penstock.jobs.schemas import JobRequest
from penstock.jobs.structure import WritesCalls, structure_of
from penstock.registry.models import Deployment
from penstock.registry.tokenizer import TOKENIZER_FILES


class PromptCounter(Protocol):
    """Knows the deployments' tokens: those of a job's input, and those that its parameters may name."""

    def count(self, deployment: Deployment, job_input: dict[str, Any], tools: Sequence[dict[str, Any]] = ()) -> int:
        """Tokens of the whole prompt, as tokenizer and chat template make them."""
        ...

    def get(self, deployment: Deployment) -> WritesCalls:
        """The model, as far as it can call tools."""
        ...

    def vocabulary(self, deployment: Deployment) -> Vocabulary:
        """The tokens that there are."""
        ...


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, and its input and parameters as the row keeps them; `tokens` of its prompt, by who reads it."""

    request: JobRequest
    input: dict[str, Any]
    params: dict[str, Any]
    tokens: dict[Hashable, int] = field(default_factory=dict)

    @classmethod
    def of(cls, request: JobRequest) -> Self:
        return cls(request, request.stored_input(), request.stored_params())

    @property
    def wants_structure(self) -> bool:
        """Whether the output is held to a grammar."""
        return bool(self.params["tools"]) or self.params["response_format"] is not None

    def count(self, prompts: PromptCounter, deployment: Deployment) -> int:
        """The prompt's tokens, which versions with the same tokenizer count once."""
        reader = _reader(deployment)
        if reader not in self.tokens:
            self.tokens[reader] = prompts.count(deployment, self.input, self.params["tools"])
        return self.tokens[reader]

    def refuse_unfit(self, prompts: PromptCounter, deployment: Deployment) -> None:
        """Raise `ContextLengthExceeded` or `ValidationFailed` where the version cannot do it."""
        refuse_unfit(
            self.request,
            prompt_tokens=self.count(prompts, deployment),
            context_length=deployment.context_length,
            vocabulary=lambda: prompts.vocabulary(deployment),
            structure=lambda: structure_of(self.params, prompts.get(deployment)),
        )


def _reader(deployment: Deployment) -> Hashable:
    """Equal for versions whose files make the same tokens of a text."""
    digests = tuple(deployment.manifest.get(name) for name in TOKENIZER_FILES)
    return digests if digests[0] is not None else deployment.id
