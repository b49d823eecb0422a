"""A job's output, put together from its journal."""

from collections.abc import Iterable
from typing import Any

from penstock.jobs.journal import JournalEntry


def assemble_output(entries: Iterable[JournalEntry]) -> dict[str, Any]:
    """`{"choices": [{"index", "text", "token_ids", "finish_reason"}]}`; the reason is None until the choice ends."""
    choices: dict[int, dict[str, Any]] = {}
    for entry in entries:
        choice = choices.setdefault(
            entry.choice, {"index": entry.choice, "text": "", "token_ids": [], "finish_reason": None}
        )
        choice["text"] += entry.text
        if entry.token_id is not None:
            choice["token_ids"].append(entry.token_id)
        if entry.finish_reason is not None:
            choice["finish_reason"] = entry.finish_reason
    return {"choices": [choices[index] for index in sorted(choices)]}


def count_tokens(entries: Iterable[JournalEntry]) -> int:
    """How many tokens the entries hold."""
    return sum(entry.token_id is not None for entry in entries)
