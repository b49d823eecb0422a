"""The forms in which models write calls.

    text, any      opening        first  object                                 between  object  last
    Let me look.   <tool_call>    \\n     {"name": "f", "arguments": {"a": 1}}   ...      ...     \\n</tool_call>

Sources: the chat templates published with Hermes 2 Pro and Qwen 2.5 (the first form), Mistral 7B 0.3 and Nemo (the
second and third), and Llama 3.1 (the last, which makes one call at a time).
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class CallForm:
    """One of them. Nothing that is said follows a call.

    `opening` ends what is said; `between` is None where one call is all there can be; `bare` says that calls may also
    begin an answer without the opening; `markers` are the pieces that a tokenizer may have a token of its own for.
    """

    name: str
    opening: str
    first: str
    between: str | None
    last: str
    arguments: str
    bare: bool
    markers: tuple[str, ...]

    @property
    def before_name(self) -> str:
        """How an object begins."""
        return '{"name": "'

    @property
    def before_arguments(self) -> str:
        """What stands between the name and the arguments."""
        return f'", "{self.arguments}": '

    def written(self, name: str, arguments: str) -> str:
        """One call's object."""
        return f"{self.before_name}{name}{self.before_arguments}{arguments}}}"


HERMES: Final = CallForm(
    name="hermes",
    opening="<tool_call>",
    first="\n",
    between="\n</tool_call>\n<tool_call>\n",
    last="\n</tool_call>",
    arguments="arguments",
    bare=False,
    markers=("<tool_call>", "</tool_call>"),
)
MISTRAL: Final = CallForm(
    name="mistral",
    opening="[TOOL_CALLS]",
    first="[",
    between=", ",
    last="]",
    arguments="arguments",
    bare=False,
    markers=("[TOOL_CALLS]",),
)
MISTRAL_SPACED: Final = CallForm(
    name="mistral-spaced",
    opening="[TOOL_CALLS]",
    first=" [",
    between=", ",
    last="]",
    arguments="arguments",
    bare=False,
    markers=("[TOOL_CALLS]",),
)
LLAMA: Final = CallForm(
    name="llama",
    opening="<|python_tag|>",
    first="",
    between=None,
    last="",
    arguments="parameters",
    bare=True,
    markers=("<|python_tag|>",),
)
FORMS: Final = (HERMES, MISTRAL, MISTRAL_SPACED, LLAMA)
SUPPORTED: Final = "Hermes and Qwen (<tool_call>), Mistral ([TOOL_CALLS][...]) and Llama 3.1 (JSON)"
