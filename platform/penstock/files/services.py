"""Files in the database: begun, told of, listed and let go. Takes a session, never commits."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from sqlalchemy import delete, func, insert, or_, select, update
from sqlalchemy.orm import Session

from penstock.batches.models import Batch
from penstock.batches.states import UNFINISHED
from penstock.errors import FileInUse, NotFound
from penstock.files.models import File, FileState, Purpose
from penstock.ids import new_id

ABANDONED_SECONDS: Final = 600
"""A writer that was not seen at its file for so long is gone."""
_SWEPT_AT_ONCE: Final = 20


@dataclass(frozen=True, slots=True)
class Contents:
    """What was written: its length in bytes and the SHA-256 of all of them, in hexadecimal."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file that is to be written. `expires_seconds` counts from its creation."""

    tenant_id: str
    purpose: Purpose
    filename: str
    content_type: str
    expires_seconds: int | None = None


def begin(session: Session, new: NewFile) -> File:
    """A file whose bytes come; nobody sees it before `complete`."""
    return session.scalars(
        insert(File)
        .values(
            id=new_id("file"),
            tenant_id=new.tenant_id,
            purpose=new.purpose,
            filename=new.filename,
            content_type=new.content_type,
            expires_at=_in(new.expires_seconds),
        )
        .returning(File)
    ).one()


def touch(session: Session, file_id: str) -> None:
    """Say that its writer is still at it."""
    session.execute(update(File).where(File.id == file_id).values(touched_at=func.now()))


def complete(session: Session, file_id: str, contents: Contents, *, expires_seconds: int | None = None) -> File:
    """Show the file, whose bytes are safe. Raises `NotFound` when it was swept meanwhile."""
    values = {"expires_at": File.created_at + timedelta(seconds=expires_seconds)} if expires_seconds else {}
    file = session.scalars(
        update(File)
        .where(File.id == file_id, File.state == FileState.UPLOADING)
        .values(state=FileState.READY, bytes=contents.bytes, sha256=contents.sha256, touched_at=func.now(), **values)
        .returning(File)
        .execution_options(populate_existing=True)
    ).one_or_none()
    if file is None:
        raise NotFound("the file was given up, because nothing came for too long; send it again")
    return file


def get(session: Session, tenant_id: str, file_id: str, *, field: str = "id") -> File:
    """The tenant's file. Raises `NotFound`, also for another tenant's and for one that is not whole."""
    found = select(File).where(File.id == file_id, File.tenant_id == tenant_id, File.state == FileState.READY)
    file = session.scalars(found).one_or_none()
    if file is None:
        raise NotFound(f"no file {file_id!r}", field=field)
    return file


@dataclass(frozen=True, slots=True)
class FileFilter:
    """Which files a listing shows, in which order."""

    purpose: str | None = None
    oldest_first: bool = False


def list_files(
    session: Session, tenant_id: str, wanted: FileFilter, *, limit: int, after: str | None = None
) -> tuple[Sequence[File], bool]:
    """A page of the tenant's files, those behind `after`, and whether there are more."""
    query = select(File).where(File.tenant_id == tenant_id, File.state == FileState.READY)
    if wanted.purpose is not None:
        query = query.where(File.purpose == wanted.purpose)
    if after is not None:
        query = query.where(File.id > after if wanted.oldest_first else File.id < after)
    order = File.id.asc() if wanted.oldest_first else File.id.desc()
    files = session.scalars(query.order_by(order).limit(limit + 1)).all()
    return files[:limit], len(files) > limit


def let_go(session: Session, tenant_id: str, file_id: str) -> File:
    """Hide the file, whose bytes are then to be deleted. Raises `NotFound`, and `FileInUse` while a batch reads it."""
    file = get(session, tenant_id, file_id)
    users = select(Batch.id).where(Batch.input_file_id == file_id, Batch.state.in_(UNFINISHED)).limit(1)
    batch_id = session.scalar(users)
    if batch_id is not None:
        raise FileInUse(f"{batch_id} reads {file_id}; cancel it, or wait for its end", batch=batch_id)
    session.execute(update(File).where(File.id == file_id).values(state=FileState.DELETING, touched_at=func.now()))
    return file


def discard(session: Session, file_id: str) -> None:
    """Give up a file that is being written, or hide one that is not to stay."""
    session.execute(update(File).where(File.id == file_id).values(state=FileState.DELETING))


def forget(session: Session, file_id: str) -> None:
    """Remove the row of a file whose bytes are gone."""
    session.execute(delete(File).where(File.id == file_id, File.state == FileState.DELETING))


def take_dead(session: Session) -> Sequence[File]:
    """Up to 20 files that are to go: expired, being deleted, or left behind by a writer. All are hidden on return."""
    now = func.clock_timestamp()
    reading = select(Batch.id).where(Batch.input_file_id == File.id, Batch.state.in_(UNFINISHED)).exists()
    expired = (File.state == FileState.READY) & (File.expires_at <= now) & ~reading
    abandoned = (File.state == FileState.UPLOADING) & (File.touched_at < now - timedelta(seconds=ABANDONED_SECONDS))
    dead = select(File.id).where(or_(expired, abandoned, File.state == FileState.DELETING))
    chosen = dead.limit(_SWEPT_AT_ONCE).with_for_update(skip_locked=True)
    return session.scalars(
        update(File).where(File.id.in_(chosen)).values(state=FileState.DELETING).returning(File)
    ).all()


def _in(seconds: int | None) -> object:
    return func.now() + timedelta(seconds=seconds) if seconds is not None else None
