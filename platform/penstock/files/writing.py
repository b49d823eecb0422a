"""Writing a file: its row first, then its bytes, then both together are there. A crash leaves nothing that is seen."""

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from sqlalchemy.exc import DBAPIError

from penstock.db import Database
from penstock.errors import ServiceUnavailable
from penstock.files import services as files
from penstock.files.models import File
from penstock.files.services import Contents, NewFile
from penstock.files.storage import FileStorage, Writable
from penstock.logs import get_logger

_TOUCH_SECONDS: Final = 30.0
log = get_logger(__name__)


class Writing:
    """A file that is being written, `size` bytes so far. `contents` is known once they are safe."""

    contents: Contents

    def __init__(self, database: Database, file: File, out: Writable) -> None:
        self.id = file.id
        self._database, self._out = database, out
        self._hash = hashlib.sha256()
        self.size = 0
        self._touched = time.monotonic()

    def write(self, data: bytes) -> None:
        """Append the bytes. Raises `ServiceUnavailable`."""
        self._out.write(data)
        self._hash.update(data)
        self.size += len(data)
        if time.monotonic() - self._touched > _TOUCH_SECONDS:
            with self._database.transaction() as session:
                files.touch(session, self.id)
            self._touched = time.monotonic()

    def seal(self) -> None:
        """Take note of what was written."""
        self.contents = Contents(self.size, self._hash.hexdigest())


@contextmanager
def writing(database: Database, storage: FileStorage, new: NewFile) -> Iterator[Writing]:
    """A new file, whose bytes are safe on leaving; then `files.complete` shows it. An exception leaves nothing."""
    with database.transaction() as session:
        file = files.begin(session, new)
    try:
        with storage.writing(file.key) as out:
            written = Writing(database, file, out)
            yield written
            written.seal()
    except BaseException:
        with suppress(DBAPIError):  # then it is swept
            remove(database, storage, file)
        raise


def remove(database: Database, storage: FileStorage, file: File) -> None:
    """Hide the file, delete its bytes, then its row. What fails half-way is finished by the sweeper."""
    with database.transaction() as session:
        files.discard(session, file.id)
    _delete(database, storage, file)


def sweep(database: Database, storage: FileStorage) -> int:
    """Remove files that are to go, a few at a time; how many are gone, so 0 also while the storage is away."""
    with database.transaction() as session:
        dead = files.take_dead(session)
    return sum(_delete(database, storage, file) for file in dead)


def _delete(database: Database, storage: FileStorage, file: File) -> bool:
    try:
        storage.delete(file.key)
    except ServiceUnavailable:
        return False
    with database.transaction() as session:
        files.forget(session, file.id)
    log.info("file.removed", file=file.id, purpose=file.purpose)
    return True
