"""Server-sent events, decoded as the HTML standard says: https://html.spec.whatwg.org/multipage/server-sent-events.html

Lines end where the standard ends them and nowhere else: a token may hold any other line separator of Unicode.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

_LINE_END: Final = re.compile(rb"\r\n|\n|\r")


@dataclass(frozen=True, slots=True)
class Message:
    """One dispatched event: its name, its data, and its id if it carried one."""

    event: str
    data: str
    id: str | None


def messages(chunks: Iterable[bytes]) -> Iterator[Message]:
    """The messages of a stream, each as soon as its closing blank line is there. One that is cut off is never given."""
    block = _Block()
    for line in _lines(chunks):
        if line:
            block.take(line)
            continue
        if block.data:
            yield block.message()
        block = _Block()


@dataclass(slots=True)
class _Block:
    event: str = "message"
    data: list[str] = field(default_factory=list)
    id: str | None = None

    def take(self, line: bytes) -> None:
        name, _, value = line.decode("utf-8", "replace").partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self.event = value
        elif name == "data":
            self.data.append(value)
        elif name == "id" and "\0" not in value:
            self.id = value

    def message(self) -> Message:
        return Message(self.event, "\n".join(self.data), self.id)


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        rest += chunk
        # A carriage return at the end may be the first half of a line end.
        held = rest[-1:] if rest.endswith(b"\r") else b""
        *whole, rest = _LINE_END.split(rest[: len(rest) - len(held)])
        rest += held
        yield from whole
