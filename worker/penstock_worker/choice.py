"""One choice of a job: token ids in, journal entries out."""

from collections.abc import Sequence
from typing import Final, Protocol

from penstock.jobs.journal import JournalEntry

from penstock_worker.stop_strings import StopMatcher
from penstock_worker.tool_calls import NO_CALLS, CallReader, Pieces

LEAST_LOGPROB: Final = -9999.0


class Detokenizer(Protocol):
    """Turns token ids into text as they come."""

    def push(self, token_id: int) -> str:
        """The whole characters that this token completes; empty while a character is still open."""

    def flush(self) -> str:
        """What was left open."""


class ChoiceStream:
    """Detokenizes, reads tool calls, matches stop strings and counts, for one choice. Entries carry the fence
    of the holder that makes them.

    Stop strings are looked for before anything is journalled, so that no reader ever sees one, and only in
    text of tokens from `min_tokens` on, outside of calls.
    """

    def __init__(
        self,
        choice: int,
        detokenizer: Detokenizer,
        *,
        stops: Sequence[str],
        min_tokens: int,
        fence: int,
        calls: CallReader | None = None,
    ) -> None:
        self._choice = choice
        self._detokenizer = detokenizer
        self._matcher = StopMatcher(stops)
        self._min_tokens = min_tokens
        self._fence = fence
        self._calls = calls
        self.token_ids: list[int] = []
        self.finish_reason: str | None = None

    def replay(self, entries: Sequence[JournalEntry]) -> None:
        """Put the state where these entries (of this choice, from the first) left it."""
        for entry in entries:
            if entry.finish_reason is not None:
                self.finish_reason = entry.finish_reason
            elif entry.token_id is not None:
                self._next_text(entry.token_id)

    def take(
        self,
        token_id: int,
        logprob: float | None,
        finish_reason: str | None,
        top_logprobs: Sequence[tuple[int, float]] = (),
    ) -> list[JournalEntry]:
        """The next token's entry, and the choice's end if it ends here."""
        index = len(self.token_ids)
        if finish_reason == "stop":  # the token is a stop token, and no text
            self.token_ids.append(token_id)
            text, calls = "", NO_CALLS
        else:
            text, calls = self._next_text(token_id)
        likeliest = tellable_tops(top_logprobs) or None
        entry = JournalEntry(
            self._choice,
            index,
            token_id,
            text,
            tellable(logprob),
            self._fence,
            top_logprobs=likeliest,
            calls=calls,
        )
        if self._matcher.matched:
            return [entry, *self.end("stop")]
        return [entry, *self.end(finish_reason)] if finish_reason is not None else [entry]

    def end(self, finish_reason: str) -> list[JournalEntry]:
        """The entry that ends the choice, with the text that was still held back. None if it has ended."""
        if self.finish_reason is not None:
            return []
        text, calls = self._without_calls(_storable(self._detokenizer.flush()))
        text += self._calls.flush() if self._calls is not None else ""
        text = self._matcher.push(text) + self._matcher.flush()
        stopped = self._matcher.matched
        self.finish_reason = "stop" if stopped else self._told(finish_reason)
        calls = NO_CALLS if stopped else calls
        index = len(self.token_ids)
        return [JournalEntry(self._choice, index, None, text, None, self._fence, self.finish_reason, calls=calls)]

    def _next_text(self, token_id: int) -> tuple[str, Pieces]:
        text, calls = self._without_calls(_storable(self._detokenizer.push(token_id)))
        self.token_ids.append(token_id)
        if len(self.token_ids) > self._min_tokens:
            text = self._matcher.push(text)
        if self._matcher.matched:
            return text, NO_CALLS
        return (text + self._matcher.flush() if calls else text), calls  # nothing is said after a call

    def _without_calls(self, text: str) -> tuple[str, Pieces]:
        return (text, NO_CALLS) if self._calls is None else self._calls.push(text)

    def _told(self, finish_reason: str) -> str:
        """An answer that ends by itself after calls ends in order to have them run."""
        called = self._calls is not None and self._calls.called
        return "tool_calls" if called and finish_reason == "stop" else finish_reason


def tellable(logprob: float | None) -> float | None:
    """A log probability that JSON can hold: a token that the model rules out has minus infinity."""
    return None if logprob is None else max(logprob, LEAST_LOGPROB)


def tellable_tops(likeliest: Sequence[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    """The same for the likeliest tokens of one place."""
    return tuple((token_id, max(logprob, LEAST_LOGPROB)) for token_id, logprob in likeliest)


def _storable(text: str) -> str:
    """PostgreSQL keeps no NUL in text, nor do most readers expect one."""
    return text.replace("\x00", "\ufffd")
