"""Where files' bytes lie: a local folder, or whatever else fsspec knows the way to. It knows keys, and no tenant."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, Final, Protocol

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from penstock.embedded.state_folder import default_state_dir
from penstock.errors import ServiceUnavailable
from penstock.logs import get_logger
from penstock.settings import Settings

CHUNK_BYTES: Final = 256 * 1024
_REMOTE_BLOCK_BYTES: Final = 8 * 2**20  # what a remote file system gathers in memory before it sends or reads
log = get_logger(__name__)

try:  # S3's client has errors that are no OSError: among others that it cannot be reached
    from botocore.exceptions import BotoCoreError
except ImportError:
    _AWAY: tuple[type[Exception], ...] = (OSError,)
else:
    _AWAY = (OSError, BotoCoreError)


class FileStorage:
    """The storage at a URL. What it raises when that does not answer is `ServiceUnavailable`."""

    def __init__(self, url: str) -> None:
        self._fs, root = url_to_fs(url)
        self._root = str(root).rstrip("/")
        self._local = isinstance(self._fs, LocalFileSystem)

    @classmethod
    def of(cls, settings: Settings) -> "FileStorage":
        """The storage that the settings name; without one the folder `files` of the state folder."""
        return cls(settings.files_url or str(default_state_dir() / "files"))

    @contextmanager
    def writing(self, key: str) -> Iterator["Writable"]:
        """A new file, which is whole and safe on leaving; nothing is left of it when an exception leaves."""
        with _told_as_unavailable():
            self._fs.makedirs(self._path(key).rpartition("/")[0], exist_ok=True)
            file = self._fs.open(self._path(key), "wb", **self._options())
        try:
            yield _Telling(file)
            with _told_as_unavailable():
                self._close(file)
        except BaseException:
            with suppress(*_AWAY, ServiceUnavailable):
                file.close()
                self.delete(key)
            raise

    @contextmanager
    def reading(self, key: str) -> Iterator[io.BufferedReader]:
        """The file's bytes, buffered; it can seek. Raises `FileNotFoundError` when it is gone."""
        with self.open(key) as file:
            yield file

    def open(self, key: str) -> io.BufferedReader:
        """The same, to be closed by who opens it."""
        with _told_as_unavailable():
            return io.BufferedReader(self._fs.open(self._path(key), "rb", **self._options()), CHUNK_BYTES)

    def read(self, key: str, start: int, length: int) -> bytes:
        """So many bytes from `start` on."""
        with _told_as_unavailable():
            found: bytes = self._fs.cat_file(self._path(key), start=start, end=start + length)
        return found

    def delete(self, key: str) -> None:
        """Remove the file, if it is there."""
        with _told_as_unavailable(), suppress(FileNotFoundError):
            self._fs.rm_file(self._path(key))

    def delete_folder(self, name: str) -> None:
        """Remove whatever lies under that folder, and it, if it is there."""
        with _told_as_unavailable(), suppress(FileNotFoundError):
            self._fs.rm(self._path(name), recursive=True)

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"

    def _options(self) -> dict[str, Any]:
        return {} if self._local else {"block_size": _REMOTE_BLOCK_BYTES}

    def _close(self, file: IO[bytes]) -> None:
        if self._local:  # a row must not outlive a power cut that its bytes do not
            file.flush()
            os.fsync(file.fileno())
        file.close()


class Writable(Protocol):
    """What bytes can be written to."""

    def write(self, data: bytes, /) -> int:
        """Take all of the bytes."""


class _Telling:
    """A file whose troubles are told as `ServiceUnavailable`."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, data: bytes, /) -> int:
        with _told_as_unavailable():
            return self._file.write(data)


@contextmanager
def _told_as_unavailable() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except _AWAY as error:
        log.error("file.storage_unavailable", error=type(error).__name__, detail=str(error).split("\n")[0])
        raise ServiceUnavailable("the file storage does not answer; try again in a moment", retry_after=1) from error
