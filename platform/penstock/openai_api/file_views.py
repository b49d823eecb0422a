"""The routes of files, as OpenAI's clients know them."""

from typing import Final
from urllib.parse import quote

from apiflask import APIBlueprint
from flask import Response, jsonify, request
from werkzeug.exceptions import RequestedRangeNotSatisfiable
from werkzeug.wsgi import FileWrapper

from penstock.auth.services import Principal, Scope
from penstock.endpoints import Contract, ErrorForm, endpoint
from penstock.errors import NotFound
from penstock.files import services as files
from penstock.files.documents import (
    FileDeleted,
    FileDocument,
    FilePage,
    FileQuery,
    RangeHeaders,
    UploadForm,
    file_document,
)
from penstock.files.models import File
from penstock.files.storage import CHUNK_BYTES
from penstock.files.uploads import Upload
from penstock.files.writing import remove
from penstock.openai_api.problems import OpenAIError
from penstock.services import current_services

routes: Final = APIBlueprint("api_files", __name__, url_prefix="/v1/files", tag="Files and batches")
THEIR_FORM: Final = ErrorForm(OpenAIError.__name__, "application/json", invalid_status=400)
_FORM_BYTES: Final = 64 * 1024  # what a form needs beside its file
_BINARY: Final = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


@endpoint(
    routes,
    "POST",
    "",
    Contract(scope=Scope.JOBS_WRITE, form=UploadForm, answer=FileDocument, problems=(400, 413, 415), errors=THEIR_FORM),
)
def upload_file(principal: Principal) -> Response:
    """Upload a file, as a form. It goes to the storage as it comes, and is there once it is whole."""
    services = current_services()
    most = services.settings.max_file_bytes
    request.max_content_length = most + _FORM_BYTES
    upload = Upload(services.database, services.storage, tenant_id=principal.tenant_id, max_bytes=most)
    return jsonify(file_document(upload.receive(request.stream, request.headers.get("Content-Type", ""))))


@endpoint(
    routes,
    "GET",
    "",
    Contract(scope=Scope.JOBS_READ, query=FileQuery, answer=FilePage, errors=THEIR_FORM),
)
def list_files(principal: Principal, query: FileQuery) -> Response:
    """List files, newest first."""
    wanted = files.FileFilter(query.purpose, query.order == "asc")
    with current_services().database.transaction() as session:
        found, more = files.list_files(session, principal.tenant_id, wanted, limit=query.limit, after=query.after)
    data = [file_document(file) for file in found]
    ends = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
    return jsonify({"object": "list", "data": data, **ends, "has_more": more})


@endpoint(
    routes,
    "GET",
    "/<file_id>",
    Contract(scope=Scope.JOBS_READ, answer=FileDocument, problems=(404,), errors=THEIR_FORM),
)
def get_file(principal: Principal, file_id: str) -> Response:
    """Get what is known of a file."""
    return jsonify(file_document(_found(principal, file_id)))


@endpoint(
    routes,
    "DELETE",
    "/<file_id>",
    Contract(scope=Scope.JOBS_WRITE, answer=FileDeleted, problems=(404, 409), errors=THEIR_FORM),
)
def delete_file(principal: Principal, file_id: str) -> Response:
    """Delete a file, its bytes too. A batch that has not ended keeps its input."""
    services = current_services()
    with services.database.transaction() as session:
        file = files.let_go(session, principal.tenant_id, file_id)
    remove(services.database, services.storage, file)
    return jsonify({"id": file_id, "object": "file", "deleted": True})


@endpoint(
    routes,
    "GET",
    "/<file_id>/content",
    Contract(
        scope=Scope.JOBS_READ,
        headers=RangeHeaders,
        problems=(404, 416),
        responses={
            200: {"description": "The file", "content": _BINARY},
            206: {"description": "The part of it that `Range` names", "content": _BINARY},
        },
        errors=THEIR_FORM,
    ),
)
def get_file_content(principal: Principal, headers: RangeHeaders, file_id: str) -> Response:  # noqa: ARG001 - werkzeug reads the range
    """Download a file, or a part of it."""
    return content_of(_found(principal, file_id))


def content_of(file: File) -> Response:
    """The file's bytes, or the part of them that the request's `Range` names. Raises `NotFound` when they are gone."""
    try:
        opened = current_services().storage.open(file.key)
    except FileNotFoundError:
        raise NotFound(f"no file {file.id!r}", field="id") from None
    response = Response(FileWrapper(opened, CHUNK_BYTES), mimetype=file.content_type, direct_passthrough=True)
    response.call_on_close(opened.close)
    response.content_length = file.bytes or 0
    response.set_etag(file.sha256 or "")
    response.headers["Content-Disposition"] = f"attachment; filename*=UTF-8''{quote(file.filename)}"
    response.headers["X-Content-Type-Options"] = "nosniff"
    try:
        response.make_conditional(request.environ, accept_ranges=True, complete_length=file.bytes)
    except RequestedRangeNotSatisfiable:
        opened.close()
        raise
    return response


def _found(principal: Principal, file_id: str) -> File:
    with current_services().database.transaction() as session:
        return files.get(session, principal.tenant_id, file_id)
