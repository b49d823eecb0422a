"""An upload: a form whose file goes to the storage as it comes, whatever order its fields have."""

import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from werkzeug.sansio.multipart import Data, Event
from werkzeug.sansio.multipart import Field as FormField
from werkzeug.sansio.multipart import File as FormFile

from penstock.db import Database
from penstock.errors import BodyTooLarge
from penstock.files import services as files
from penstock.files.models import File, Purpose
from penstock.files.multipart import is_end, read_parts
from penstock.files.services import NewFile
from penstock.files.storage import FileStorage
from penstock.files.writing import Writing, writing
from penstock.problems import explain_validation, refuse_field

LEAST_EXPIRY_SECONDS: Final = 3600
MOST_EXPIRY_SECONDS: Final = 30 * 86_400
_LONGEST_NAME: Final = 255
_LONGEST_FIELD: Final = 1024
_ANYTHING: Final = "application/octet-stream"
_MEDIA_TYPE: Final = re.compile(r"[a-z0-9.+-]{1,60}/[a-z0-9.+-]{1,60}")


class UploadFields(BaseModel):
    """The form's fields beside the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    purpose: Literal["batch"] = Field(description="What it is for")
    expires_anchor: str | None = Field(default=None, alias="expires_after[anchor]", pattern="^created_at$")
    expires_seconds: int | None = Field(
        default=None, alias="expires_after[seconds]", ge=LEAST_EXPIRY_SECONDS, le=MOST_EXPIRY_SECONDS
    )


class Upload:
    """One form on its way in. At most `max_bytes` are taken."""

    def __init__(self, database: Database, storage: FileStorage, *, tenant_id: str, max_bytes: int) -> None:
        self._database, self._storage = database, storage
        self._tenant_id, self._max_bytes = tenant_id, max_bytes
        self._fields: dict[str, str] = {}
        self._file: Writing | None = None

    def receive(self, stream: IO[bytes], content_type: str) -> File:
        """Take the form to its end; the file as it is then there.

        Raises `ValidationFailed`, `BodyTooLarge` and what `read_parts` and the storage raise; then nothing is kept.
        """
        with ExitStack() as undo:
            parts = read_parts(stream, content_type)
            for part in parts:
                if isinstance(part, FormFile):
                    self._begin(part, undo)
                    self._take_file(parts)
                elif isinstance(part, FormField):
                    self._take_field(part.name, parts)
            if self._file is None:
                raise refuse_field("file", "is missing", "send the file as the part `file`, with a file name")
            asked = self._asked()
            undo.close()
            with self._database.transaction() as session:
                return files.complete(
                    session, self._file.id, self._file.contents, expires_seconds=asked.expires_seconds
                )

    def _begin(self, part: FormFile, undo: ExitStack) -> None:
        if part.name != "file" or self._file is not None:
            raise refuse_field(str(part.name), "is one file too many", "send one file, as the part `file`")
        kind = part.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        content_type = kind if _MEDIA_TYPE.fullmatch(kind) else _ANYTHING
        new = NewFile(self._tenant_id, Purpose.BATCH, _shown(part.filename), content_type)
        self._file = undo.enter_context(writing(self._database, self._storage, new))

    def _take_file(self, parts: Iterator[Event]) -> None:
        assert self._file is not None
        for piece in parts:
            assert isinstance(piece, Data)
            if self._file.size + len(piece.data) > self._max_bytes:
                raise BodyTooLarge(f"the file may have at most {self._max_bytes} bytes", limit_bytes=self._max_bytes)
            self._file.write(piece.data)
            if is_end(piece):
                return

    def _take_field(self, name: str, parts: Iterator[Event]) -> None:
        if name == "file":
            raise refuse_field("file", "is a field", "send it as a file, with a file name")
        if name in self._fields:
            raise refuse_field(str(name), "is given more than once", "give it once")
        value = b""
        for piece in parts:
            assert isinstance(piece, Data)
            value += piece.data
            if len(value) > _LONGEST_FIELD:
                raise refuse_field(str(name), "is too long", f"it may have at most {_LONGEST_FIELD} bytes")
            if is_end(piece):
                break
        self._fields[str(name)] = value.decode(errors="replace")

    def _asked(self) -> UploadFields:
        fields: dict[str, Any] = dict(self._fields)
        try:
            asked = UploadFields.model_validate(fields)
        except ValidationError as error:
            raise explain_validation(error) from None
        if (asked.expires_anchor is None) != (asked.expires_seconds is None):
            raise refuse_field("expires_after", "is incomplete", "give both its anchor and its seconds")
        return asked


def _shown(filename: str) -> str:
    """The last part of the name without what no eye can see."""
    last = filename.replace("\\", "/").rpartition("/")[2]
    return "".join(character for character in last if character.isprintable())[:_LONGEST_NAME] or "file"
