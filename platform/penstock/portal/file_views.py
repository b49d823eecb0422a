"""The page of files: uploaded by drag and drop, downloaded, deleted."""

from typing import Final

from flask import Blueprint, Response, flash, jsonify, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from penstock.errors import PenstockError
from penstock.files import services as files
from penstock.files.documents import file_document
from penstock.files.models import Purpose
from penstock.files.uploads import Upload
from penstock.files.writing import remove
from penstock.openai_api.file_views import content_of
from penstock.portal.guard import check_form, guard, tenant_id
from penstock.problems import refuse_field
from penstock.services import current_services

blueprint = Blueprint("portal_files", __name__, url_prefix="/files")
blueprint.before_request(check_form)
blueprint.before_request(guard)
FORM_BYTES: Final = 64 * 1024  # what a form needs beside its file
_PAGE_SIZE: Final = 25


@blueprint.get("")
def index() -> str:
    """The tenant's files, newest first."""
    purpose, after = request.args.get("purpose") or None, request.args.get("after") or None
    if purpose not in (None, *Purpose):
        raise refuse_field("purpose", "is none that files have", f"choose among {', '.join(Purpose)}")
    services = current_services()
    with services.database.transaction() as session:
        found, more = files.list_files(session, tenant_id(), files.FileFilter(purpose), limit=_PAGE_SIZE, after=after)
    return render_template(
        "portal/files/index.html", files=found, more=more, purpose=purpose, after=after,
        most=services.settings.max_file_bytes,
    )  # fmt: skip


@blueprint.post("")
def upload() -> tuple[Response, int]:
    """Take a file as it comes; the script that sends it is answered with its document, or with what is wrong."""
    services = current_services()
    most = services.settings.max_file_bytes
    request.max_content_length = most + FORM_BYTES
    upload = Upload(services.database, services.storage, tenant_id=tenant_id(), max_bytes=most)
    try:
        received = upload.receive(request.stream, request.headers.get("Content-Type", ""))
    except PenstockError as error:
        if error.status >= 500:
            raise
        return jsonify(error.problem()), error.status
    return jsonify(file_document(received)), 201


@blueprint.get("/<file_id>/content")
def content(file_id: str) -> Response:
    """Download a file."""
    with current_services().database.transaction() as session:
        file = files.get(session, tenant_id(), file_id)
    return content_of(file)


@blueprint.post("/<file_id>/delete")
def delete(file_id: str) -> AnyResponse:
    """Delete a file, its bytes too; one that a batch reads stays, and the page says so."""
    services = current_services()
    try:
        with services.database.transaction() as session:
            file = files.let_go(session, tenant_id(), file_id)
        remove(services.database, services.storage, file)
        flash(f"{file.filename} is gone.", "good")
    except PenstockError as error:
        if error.status != 409:
            raise
        flash(f"{error.message[:1].upper()}{error.message[1:]}.", "bad")
    return redirect(url_for("portal_files.index"), 303)
