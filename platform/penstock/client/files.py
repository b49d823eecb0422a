"""`client.files`: what was uploaded, and what batches have written."""

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final, Literal
from urllib.parse import quote

from penstock.client.documents import Document, parse
from penstock.client.reading import Asking, Pages, Upload

_PATH: Final = "/v1/files"
_TYPE: Final = "application/jsonl"


class File(Document):
    """A file. `created_at` and `expires_at` are Unix seconds; `sha256` is that of its bytes, in hexadecimal."""

    id: str
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    content_type: str
    sha256: str


class _FilePage(Document):
    data: list[File]
    has_more: bool
    last_id: str | None

    @property
    def next(self) -> str | None:
        """Where the next page begins."""
        return self.last_id


class Files:
    """The files of the key's tenant."""

    def __init__(self, transport: Asking) -> None:
        self._transport = transport

    def upload(
        self, source: str | Path | IO[bytes], *, filename: str | None = None, expires_seconds: int | None = None
    ) -> File:
        """Send a file for a batch, from a path or from what can be read; it is never in memory as a whole.

        Without `expires_seconds` (an hour to 30 days) it stays until it is deleted. Raises `BodyTooLarge`.
        """
        readable = Path(source) if isinstance(source, str) else source
        known = readable.name if isinstance(readable, Path) else "lines.jsonl"
        fields = {"purpose": "batch"}
        if expires_seconds is not None:
            fields |= {"expires_after[anchor]": "created_at", "expires_after[seconds]": str(expires_seconds)}
        return parse(File, self._transport.upload(Upload(_PATH, fields, filename or known, readable, _TYPE)))

    def get(self, file_id: str) -> File:
        """What is known of the file. Raises `NotFound`."""
        return parse(File, self._transport.request("GET", _path(file_id)))

    def list(
        self, *, purpose: Literal["batch", "batch_output"] | None = None, page_size: int | None = None
    ) -> Iterator[File]:
        """All files, newest first; each page is fetched when the iterator gets there."""
        query: dict[str, Any] = {"purpose": purpose, "limit": page_size}
        return self._transport.pages(Pages(_FilePage, _PATH, query))

    def delete(self, file_id: str) -> None:
        """Delete it with its bytes. Raises `FileInUse` while a batch reads it."""
        self._transport.request("DELETE", _path(file_id))

    def read(self, file_id: str) -> bytes:
        """All its bytes, in memory."""
        return self._transport.fetch(f"{_path(file_id)}/content")

    def download(self, file_id: str, target: str | Path) -> None:
        """Write its bytes to a path as they come; a lost connection goes on where it broke off."""
        self._transport.save(f"{_path(file_id)}/content", Path(target))


def _path(file_id: str) -> str:
    return f"{_PATH}/{quote(file_id, safe='')}"
