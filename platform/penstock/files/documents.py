"""How files look from outside: OpenAI's members, and the digest of what they hold."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from penstock.files.models import File


class _Exactly(BaseModel):
    model_config = ConfigDict(extra="forbid")


class FileDocument(_Exactly):
    """A file."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int = Field(description="Unix seconds")
    expires_at: int | None
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"]
    content_type: str
    sha256: str = Field(description="Of its bytes, in hexadecimal")


class FilePage(_Exactly):
    """A page of files."""

    object: Literal["list"]
    data: list[FileDocument]
    first_id: str | None
    last_id: str | None = Field(description="Give it as `after` to get the next page")
    has_more: bool


class FileDeleted(_Exactly):
    """What is left of a file."""

    id: str
    object: Literal["file"]
    deleted: Literal[True]


class FileQuery(BaseModel):
    """Which files, and which page of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    purpose: Literal["batch", "batch_output"] | None = None
    order: Literal["asc", "desc"] = Field(default="desc", description="By age; newest first without it")
    after: str | None = Field(default=None, pattern=r"^file_[0-9a-z]{26}$", description="`last_id` of the page before")
    limit: int = Field(default=1000, ge=1, le=10_000)


class RangeHeaders(BaseModel):
    """Which part."""

    range: str | None = Field(default=None, description="`bytes=FIRST-LAST`, to go on with a download that broke off")
    if_range: str | None = Field(default=None, description="The `ETag` that the part must belong to")


class UploadForm(BaseModel):
    """The form: the file, and what it is for."""

    file: str = Field(description="The file, with its name", json_schema_extra={"format": "binary"})
    purpose: Literal["batch"]
    expires_anchor: Literal["created_at"] = Field(default="created_at", alias="expires_after[anchor]")
    expires_seconds: int = Field(default=2_592_000, alias="expires_after[seconds]", description="Kept for good without")


def file_document(file: File) -> dict[str, Any]:
    """As `FileDocument`."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": int(file.created_at.timestamp()),
        "expires_at": int(file.expires_at.timestamp()) if file.expires_at is not None else None,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "content_type": file.content_type,
        "sha256": file.sha256,
    }
