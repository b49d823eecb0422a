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
    decoder = Decoder()
    for chunk in chunks:
        yield from decoder.feed(chunk)


class Decoder:
    """Makes messages of a stream's bytes as they come."""

    def __init__(self) -> None:
        self._block = _Block()
        self._rest = b""

    def feed(self, chunk: bytes) -> Iterator[Message]:
        """The messages that end in this chunk."""
        for line in self._lines(chunk):
            if line:
                self._block.take(line)
                continue
            block, self._block = self._block, _Block()
            if block.data:
                yield block.message()

    def _lines(self, chunk: bytes) -> list[bytes]:
        data = self._rest + chunk
        # A carriage return at the end may be the first half of a line end.
        held = data[-1:] if data.endswith(b"\r") else b""
        *whole, rest = _LINE_END.split(data[: len(data) - len(held)])
        self._rest = rest + held
        return whole


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
