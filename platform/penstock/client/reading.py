"""What readers of streams and pages and those who wait know, apart from how the server is asked.

`Transport` and `AsyncTransport` ask; these say what to ask for next and what came of it.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, Generic, Protocol, TypeVar

from penstock.client.documents import parse
from penstock.client.patience import Patience
from penstock.client.sse import Decoder, Message

T = TypeVar("T")
Source = Path | IO[bytes]
"""Where a file's bytes are: at a path, or in what can be read."""
_SETTLED_SECONDS: Final = 5.0


class Reader(ABC, Generic[T]):
    """One reader of one stream, over as many connections as it takes. It remembers what it gave out."""

    path: str
    ended = False

    def question(self) -> Mapping[str, Any] | None:
        """The query of what must be asked at `path` before the stream is opened; None when there is nothing."""
        return None

    def learn(self, _answer: Mapping[str, Any], /) -> None:
        """Take the answer to the question."""

    @abstractmethod
    def headers(self) -> Mapping[str, str]:
        """Those that ask for what comes next."""

    @abstractmethod
    def take(self, message: Message) -> T | None:
        """What the message tells; None when the reader has had it. Raises `UnexpectedAnswer`."""

    @abstractmethod
    def cut_short(self) -> str:
        """What is wrong with a stream that ends here."""


@dataclass(slots=True)
class Pages(Generic[T]):
    """A listing, a page at a time. `kind` is the page's model: `data`, `has_more`, `next`."""

    kind: type[Any]
    path: str
    query: dict[str, Any]
    more: bool = field(default=True, init=False)

    def take(self, answer: Mapping[str, Any]) -> list[T]:
        """What the page holds; the query is that of the next one then."""
        page = parse(self.kind, answer)
        self.more, self.query["after"] = page.has_more, page.next
        items: list[T] = page.data
        return items


class Waiting(ABC, Generic[T]):
    """One who asks at `path` again and again until it is over."""

    path: str

    @abstractmethod
    def take(self, answer: Mapping[str, Any], /) -> tuple[T, float | None]:
        """The document, and after how many seconds to ask again; None when it is over. Raises `WaitTimedOut`."""


class Listening(Generic[T]):
    """One connection of a reader. Comments show that the server is well; what every connection begins with does not."""

    def __init__(self, reader: Reader[T], patience: Patience) -> None:
        self._reader, self._patience = reader, patience
        self._decoder, self._connected_at = Decoder(), time.monotonic()

    def hear(self, chunk: bytes) -> Iterator[T]:
        """What the reader has not had of what the bytes complete."""
        if time.monotonic() - self._connected_at > _SETTLED_SECONDS:
            self._patience.note_progress()
        for message in self._decoder.feed(chunk):
            item = self._reader.take(message)
            if item is not None:
                self._patience.note_progress()
                yield item
            if self._reader.ended:
                return


@dataclass(frozen=True, slots=True)
class Upload:
    """A form with one file, sent as it is read."""

    path: str
    fields: Mapping[str, str]
    filename: str
    source: Source
    media_type: str

    @contextmanager
    def opened(self) -> Iterator[dict[str, Any]]:
        """What httpx is to send, while the file is open."""
        with ExitStack() as held:
            source = self.source
            readable = held.enter_context(source.open("rb")) if isinstance(source, Path) else source
            yield {"data": dict(self.fields), "files": {"file": (self.filename, readable, self.media_type)}}


class Asking(Protocol):
    """A transport, as those see it who say what to ask."""

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """The JSON object that the server answers with, empty where it answers with nothing."""

    def pages(self, pages: Pages[T], /) -> Iterator[T]:
        """All that is listed; each page is fetched when the iterator gets there."""

    def read(self, reader: Reader[T], patience: Patience, /) -> Iterator[T]:
        """All that the stream tells, over as many connections as patience allows."""

    def poll(self, waiting: Waiting[T], patience: Patience, /) -> T:
        """The document once it is over."""

    def follow(self, waiting: Waiting[T], patience: Patience, /) -> Iterator[T]:
        """The document as it stands whenever it is asked for, to its end."""

    def upload(self, upload: Upload, /) -> dict[str, Any]:
        """The answer to a form with a file."""

    def fetch(self, path: str, /) -> bytes:
        """All bytes at a path, in memory."""

    def save(self, path: str, target: Path, /) -> None:
        """Write the bytes at a path to a file."""
