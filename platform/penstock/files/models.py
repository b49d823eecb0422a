"""Table `file`."""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, func, text
from sqlalchemy.orm import Mapped, mapped_column

from penstock.db import Base


class FileState(StrEnum):
    """Where a file stands: only a `ready` one is there for its tenant; what is left of the others is swept."""

    UPLOADING = "uploading"
    READY = "ready"
    DELETING = "deleting"


class Purpose(StrEnum):
    """What a file is for."""

    BATCH = "batch"
    BATCH_OUTPUT = "batch_output"


class File(Base):
    """A file's row. It is there before its bytes are and after them, so that none lie in the storage without a row."""

    __tablename__ = "file"
    __table_args__ = (
        CheckConstraint("state IN ('uploading', 'ready', 'deleting')", name="state"),
        CheckConstraint("state <> 'ready' OR (bytes IS NOT NULL AND sha256 IS NOT NULL)", name="ready_when_known"),
        Index("ix_file_tenant", "tenant_id", text("id DESC"), postgresql_where=text("state = 'ready'")),
        Index("ix_file_unfinished", "touched_at", postgresql_where=text("state <> 'ready'")),
        Index("ix_file_expiry", "expires_at", postgresql_where=text("expires_at IS NOT NULL")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    state: Mapped[str] = mapped_column(server_default=FileState.UPLOADING.value)
    purpose: Mapped[str]
    filename: Mapped[str]
    """As its sender calls it: shown again, and no part of any path."""
    content_type: Mapped[str]
    bytes: Mapped[int | None] = mapped_column(BigInteger)
    sha256: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    touched_at: Mapped[datetime] = mapped_column(server_default=func.now())
    """When its writer was last seen at it."""
    expires_at: Mapped[datetime | None]

    @property
    def key(self) -> str:
        """Where its bytes lie in the storage."""
        return self.key_of(self.tenant_id, self.id)

    @staticmethod
    def key_of(tenant_id: str, file_id: str) -> str:
        """Where the bytes of that file lie."""
        return f"{tenant_id}/{file_id}"
