"""Of several answers the likeliest are told, once all have ended.

    candidates 0 ──────────┐
               1 ─────────►┤   held here, journalled nowhere: a successor begins anew, and nobody has seen anything
               2 ────┘     └──► the n likeliest, best first, as choices 0 to n - 1

The engine can do the same, but it knows no text: a candidate that ends at a stop string would go on there, and be
judged by what is cut off.
"""

from collections.abc import Sequence

import msgspec
from penstock.jobs.journal import JournalEntry
from penstock.jobs.output import count_tokens


class Candidates:
    """The entries of all candidates. `with_logprobs` says whether those that are told keep theirs."""

    def __init__(self, *, told: int, with_logprobs: bool) -> None:
        self._told = told
        self._with_logprobs = with_logprobs
        self._entries: dict[int, list[JournalEntry]] = {}

    def hold(self, entries: Sequence[JournalEntry]) -> None:
        """The next entries, of any candidates."""
        for entry in entries:
            self._entries.setdefault(entry.choice, []).append(entry)

    def tell(self) -> list[JournalEntry]:
        """The entries of the n candidates of the highest cumulative log probability, best first, renumbered from 0."""
        return [
            self._as_choice(choice, entry)
            for choice, entries in enumerate(self._ranked[: self._told])
            for entry in entries
        ]

    @property
    def untold_tokens(self) -> int:
        """Generated for candidates that are not told."""
        return sum(count_tokens(entries) for entries in self._ranked[self._told :])

    @property
    def _ranked(self) -> list[list[JournalEntry]]:
        return sorted(self._entries.values(), key=_total_logprob, reverse=True)

    def _as_choice(self, choice: int, entry: JournalEntry) -> JournalEntry:
        if self._with_logprobs:
            return msgspec.structs.replace(entry, choice=choice)
        return msgspec.structs.replace(entry, choice=choice, logprob=None, top_logprobs=None)


def _total_logprob(entries: Sequence[JournalEntry]) -> float:
    return sum(entry.logprob or 0.0 for entry in entries)
