"""Reads calls out of what a model writes, piece by piece: however the text is cut, the same comes of it.

The text is held to the form's grammar, so what follows an opening is known to the character but for the names and the
arguments. What may yet turn out to be an opening is held back.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from penstock.tools.forms import CallForm


class UnreadableCall(ValueError):
    """After an opening came what no call begins with: the text was held to no grammar, or to another form's."""


@dataclass(slots=True)
class CallPart:
    """More of the call of that index. Its name comes once, with the first part."""

    index: int
    name: str | None = None
    arguments: str = ""


@dataclass(slots=True)
class Reading:
    """What a piece of text settled: something said, then parts of calls."""

    said: str = ""
    parts: list[CallPart] = field(default_factory=list)


class CallParser:
    """One answer's. `calls` counts those that have begun."""

    def __init__(self, form: CallForm) -> None:
        self._form = form
        self._held = ""
        self._reading = Reading()
        self._step: Callable[[], bool] = self._begin if form.bare else self._say
        self._json = _JsonObject()
        self.calls = 0

    def push(self, text: str) -> Reading:
        """What this piece settles. Raises `UnreadableCall`."""
        self._held += text
        while self._step():
            pass
        reading, self._reading = self._reading, Reading()
        return reading

    def flush(self) -> Reading:
        """The end of the text: what was held back outside of a call is said."""
        held, self._held = self._held, ""
        return Reading(held if self._step in (self._begin, self._say) else "")

    # Each step takes what it can of the held text, and answers whether another one is to go on with the rest.

    def _begin(self) -> bool:
        if (found := self._comes(self._form.before_name)) is None:
            return False
        self._step = self._name if found else self._say
        return True

    def _say(self) -> bool:
        said, opening, rest = self._held.partition(self._form.opening)
        if opening:
            self._reading.said += said
            self._held, self._step = rest, self._open
            return True
        kept = _overlap(self._held, self._form.opening)
        self._reading.said += self._held[: len(self._held) - kept]
        self._held = self._held[len(self._held) - kept :]
        return False

    def _open(self) -> bool:
        return self._expect(self._form.first + self._form.before_name, self._name)

    def _name(self) -> bool:
        name, quote, _ = self._held.partition('"')
        if not quote:
            return False
        self._held = self._held[len(name) :]
        self._reading.parts.append(CallPart(self.calls, name))
        self.calls += 1
        self._step = self._before_arguments
        return True

    def _before_arguments(self) -> bool:
        self._json = _JsonObject()
        return self._expect(self._form.before_arguments, self._arguments)

    def _arguments(self) -> bool:
        length = self._json.take(self._held)
        if length:
            self._part().arguments += self._held[:length]
        self._held = self._held[length:]
        if self._json.complete:
            self._step = self._close
        return self._json.complete

    def _close(self) -> bool:
        """Another call, or the end of the answer, of which nothing is told."""
        if self._form.between is None:
            self._held = ""
            return False
        if (found := self._comes("}" + self._form.between + self._form.before_name)) is not None:
            self._step = self._name if found else self._ignore
        return found is not None

    def _ignore(self) -> bool:
        self._held = ""
        return False

    def _part(self) -> CallPart:
        """The part of the call that is being read."""
        parts = self._reading.parts
        if not parts or parts[-1].index != self.calls - 1:
            parts.append(CallPart(self.calls - 1))
        return parts[-1]

    def _expect(self, text: str, then: Callable[[], bool]) -> bool:
        found = self._comes(text)
        if found is False:
            raise UnreadableCall(f"a call in {self._form.name}'s form goes on otherwise")
        if found:
            self._step = then
        return bool(found)

    def _comes(self, text: str) -> bool | None:
        """Whether the text comes next, which it is then cut off; None while that cannot be said."""
        if self._held.startswith(text):
            self._held = self._held[len(text) :]
            return True
        return None if text.startswith(self._held) else False


class _JsonObject:
    """Finds where a JSON object ends."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = self._escaped = False
        self.complete = False

    def take(self, text: str) -> int:
        """How many characters of the text belong to the object."""
        for place, character in enumerate(text, start=1):
            self._note(character)
            if self.complete:
                return place
        return len(text)

    def _note(self, character: str) -> None:
        if self._escaped:
            self._escaped = False
        elif self._in_string:
            self._escaped = character == "\\"
            self._in_string = character != '"'
        elif character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            self.complete = self._depth == 0


def _overlap(text: str, marker: str) -> int:
    """Length of the longest end of `text` that is a beginning of `marker`, but not all of it."""
    longest = min(len(text), len(marker) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(marker[:length])), 0)
