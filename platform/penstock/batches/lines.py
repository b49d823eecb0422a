"""One line of a batch's input: what it must be, and the job that it asks for."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from typing import Any, Final, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError

from penstock.errors import PenstockError
from penstock.jobs.params import Strict
from penstock.jobs.schemas import JobRequest
from penstock.openai_api.chat_request import ChatRequest
from penstock.openai_api.completion_request import CompletionRequest
from penstock.openai_api.problems import fields_named
from penstock.problems import explain_validation, refuse_field
from penstock.strict_json import refuse_loose_json
from penstock.webhooks.guard import check_numeric

NATIVE: Final = "/v1/jobs"
CHAT: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
Endpoint = Literal["/v1/jobs", "/v1/chat/completions", "/v1/completions"]
_CALLS: Final[dict[str, type[ChatRequest] | type[CompletionRequest]]] = {
    CHAT: ChatRequest,
    COMPLETIONS: CompletionRequest,
}
_LONGEST_ID: Final = 128
_LONGEST_TOLD: Final = 500
_NUL: Final = b"\\u0000"
Model = TypeVar("Model", bound=BaseModel)


class BatchLineRequest(Strict):
    """A line, as OpenAI has it."""

    custom_id: str = Field(min_length=1, max_length=_LONGEST_ID, description="Names the line; no other line has it")
    method: Literal["POST"]
    url: str = Field(description="The batch's endpoint")
    body: dict[str, Any] = Field(description="What would be sent there")


@dataclass(frozen=True, slots=True)
class RawLine:
    """A line as it lies in the file: its number from 1, and its place in bytes. Too long a one has no `data`."""

    number: int
    start: int
    length: int
    data: bytes | None


@dataclass(frozen=True, slots=True)
class Wish:
    """What a line asks for. `echo` says that a completion tells its prompt again."""

    custom_id: str
    request: JobRequest
    echo: bool


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with a line, as OpenAI tells it; `param` is the field, dotted."""

    code: str
    message: str
    param: str | None

    def document(self, line: int) -> dict[str, Any]:
        return {"code": self.code, "message": self.message, "param": self.param, "line": line}


class LineRefused(Exception):
    """The line is wrong. `custom_id` is known where that much could be read."""

    def __init__(self, faults: Sequence[Fault], custom_id: str | None = None) -> None:
        super().__init__(faults[0].message)
        self.faults, self.custom_id = faults, custom_id


def split_lines(file: BufferedReader, *, start: int, number: int, longest: int) -> Iterator[RawLine]:
    """The lines from byte `start` on, where line `number` begins; those that hold nothing are passed over.

    No more than about `longest` bytes of a line are in memory at once.
    """
    file.seek(start)
    most = longest + len(b"\r\n")
    while data := file.readline(most):
        content, length = data.rstrip(b"\r\n"), len(data)
        if length == most and not data.endswith(b"\n"):
            length += _skip_rest(file, most)
        if content.strip():
            yield RawLine(number, start, length, content if len(content) <= longest else None)
        start, number = start + length, number + 1


def read_line(data: bytes | None, *, endpoint: str, longest: int, allow_loopback: bool) -> Wish:
    """What the line asks for. Raises `LineRefused` with all that is wrong."""
    if data is None:
        raise LineRefused([Fault("line_too_long", f"the line has more than {longest} bytes", None)])
    line = _envelope(data)
    try:
        if line.url != endpoint:
            raise refuse_field("url", "is not the batch's endpoint", f"it must be {endpoint!r}")
        refuse_loose_json(data)
        if _NUL in data:
            _refuse_nul(line.model_dump())
        with fields_within("body"):
            request, echo = _native(line.body) if endpoint == NATIVE else _call(_CALLS[endpoint], line.body)
            if request.webhook is not None:
                check_numeric(request.webhook.url, allow_loopback=allow_loopback, field="webhook.url")
    except PenstockError as error:
        raise LineRefused(faults_of(error), line.custom_id) from None
    return Wish(line.custom_id, request, echo)


def faults_of(error: PenstockError) -> list[Fault]:
    """Every field that the error names, or the error itself."""
    each = error.extra.get("errors")
    if not each:
        return [Fault(error.code, _kept(error.message), error.field)]
    return [
        Fault(error.code, _kept(f"{one['message']}; {one['expected']}"), _kept(one["field"]) or None) for one in each
    ]


@contextmanager
def fields_within(place: str) -> Iterator[None]:
    """Have errors name their fields within that member of the line."""
    try:
        yield
    except PenstockError as error:
        error.field = f"{place}.{error.field}" if error.field else place
        for one in error.extra.get("errors", ()):
            one["field"] = f"{place}.{one['field']}" if one["field"] else place
        raise


def _skip_rest(file: BufferedReader, most: int) -> int:
    skipped = 0
    while data := file.readline(most):
        skipped += len(data)
        if data.endswith(b"\n"):
            break
    return skipped


def _envelope(data: bytes) -> BatchLineRequest:
    try:
        return BatchLineRequest.model_validate_json(data)
    except ValidationError as error:
        raise LineRefused(faults_of(explain_validation(error)), _custom_id_in(data)) from None


def _custom_id_in(data: bytes) -> str | None:
    """The custom id of a line that is wrong elsewhere."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return None
    custom_id = document.get("custom_id") if isinstance(document, dict) else None
    fits = isinstance(custom_id, str) and 0 < len(custom_id) <= _LONGEST_ID and _kept(custom_id) == custom_id
    return custom_id if fits else None


def _kept(text: str) -> str:
    """The text as PostgreSQL can keep it: names of fields are whatever a sender wrote."""
    return text[:_LONGEST_TOLD].encode(errors="replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


def _native(body: Mapping[str, Any]) -> tuple[JobRequest, bool]:
    request = _validated(JobRequest, body)
    if "job_class" in request.model_fields_set and request.job_class != "batch":
        raise refuse_field("class", "is not what a batch's jobs have", "leave it out, or make it 'batch'")
    if "priority" in request.model_fields_set:
        raise refuse_field("priority", "is the batch's to give", "leave it out, and give the batch a priority")
    return request.model_copy(update={"job_class": "batch"}), False


def _call(kind: type[ChatRequest] | type[CompletionRequest], body: Mapping[str, Any]) -> tuple[JobRequest, bool]:
    call = _validated(kind, body)
    if call.stream:
        raise refuse_field("stream", "cannot be had in a batch", "leave it out; results are read as lines finish")
    asked = call.jobs()
    if len(asked) != 1:
        raise refuse_field("prompt", "holds several prompts", "give one prompt a line")
    with fields_named(call.field_names()):
        request = _validated(JobRequest, {**asked[0], "class": "batch"})
    return request, isinstance(call, CompletionRequest) and bool(call.echo)


def _validated(kind: type[Model], body: Mapping[str, Any]) -> Model:
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise explain_validation(error) from None


def _refuse_nul(value: Any, path: tuple[str, ...] = ()) -> None:
    # PostgreSQL keeps every character but this one.
    if isinstance(value, str) and "\0" in value:
        raise refuse_field(".".join(path), "contains the character NUL", "it may hold any other character")
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, member in members:
        _refuse_nul(str(name), (*path, "key"))
        _refuse_nul(member, (*path, str(name)))
