"""Fields of plain forms: how their errors are told at them, and how a browser's moments are read."""

from collections.abc import Mapping
from datetime import UTC, datetime

from penstock.errors import PenstockError


def errors_of(error: PenstockError) -> dict[str, str]:
    """Each field's error as a sentence, by the field's name; what belongs to no field is under the empty name.

    Raises the error itself where it is the platform's own and no form can mend it.
    """
    if error.status >= 500:
        raise error
    problems = error.extra.get("errors") or [{"field": error.field or "", "message": error.message}]
    found: dict[str, str] = {}
    for problem in problems:
        found.setdefault(problem["field"].partition(".")[0], sentence(problem))
    return found


def sentence(problem: Mapping[str, str]) -> str:
    """What is wrong and what would be right, as a sentence."""
    text = "; ".join(part for part in (problem["message"], problem.get("expected", "")) if part)
    return f"{text[:1].upper()}{text[1:]}."


def moment_or_text(text: str) -> datetime | str:
    """What a field of date and time holds, which is UTC; where that cannot be read, the text, to be refused."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return text
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def number_or_text(text: str) -> int | float | str:
    """The number that a field holds; where it is none, the text, to be refused."""
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        return text
