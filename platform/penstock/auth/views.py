"""What a tenant's administrators do: its keys, its people, the record of changes, and the webhooks' secret."""

from typing import Any, Final

from apiflask import APIBlueprint
from flask import Response, jsonify, url_for
from pydantic import BaseModel, Field

from penstock.auth import services as auth
from penstock.auth.acting import actor_of
from penstock.auth.administration import Administration, UserChange
from penstock.auth.audit import AuditFilter, list_entries
from penstock.auth.documents import (
    AuditPage,
    KeyDocument,
    KeyList,
    NewKeyDocument,
    NewUserDocument,
    UserDocument,
    UserList,
    key_document,
    list_of,
    page_of,
    user_document,
)
from penstock.auth.models import Tenant
from penstock.auth.schemas import AuditQuery, KeyRequest, UserChangeRequest, UserRequest
from penstock.auth.services import Principal, Scope
from penstock.endpoints import Contract, endpoint
from penstock.services import current_services

routes: Final = APIBlueprint("api_account", __name__, url_prefix="/v1", tag="Account")


class WebhookSecret(BaseModel):
    """The secret that signs all webhooks of the tenant."""

    secret: str = Field(description="`whsec_` and base64; see Standard Webhooks 1.0 for how to check a signature")


class CreatedHeaders(BaseModel):
    """Headers of something that was made."""

    location: str = Field(description="Where it is")


@endpoint(routes, "GET", "/webhook-secret", Contract(scope=Scope.JOBS_WRITE, answer=WebhookSecret))
def get_webhook_secret(principal: Principal) -> Response:
    """Get the secret with which to check the signatures of webhooks."""
    with current_services().database.transaction() as session:
        return secretly({"secret": session.get_one(Tenant, principal.tenant_id).webhook_secret})


@endpoint(routes, "GET", "/keys", Contract(scope=Scope.ADMIN, answer=KeyList))
def list_keys(principal: Principal) -> Response:
    """List the tenant's keys, newest first, also those that no longer work."""
    with current_services().database.transaction() as session:
        return jsonify(list_of([key_document(key) for key in auth.list_api_keys(session, principal.tenant_id)]))


@endpoint(
    routes,
    "POST",
    "/keys",
    Contract(
        scope=Scope.ADMIN,
        body=KeyRequest,
        answer=NewKeyDocument,
        status=201,
        answer_headers=CreatedHeaders,
        problems=(400, 413, 415),
    ),
)
def create_key(principal: Principal, body: KeyRequest) -> tuple[Response, int, dict[str, str]]:
    """Make a key. Its scopes and models cannot go beyond those of the key that makes it."""
    return created_key(principal, principal.tenant_id, body)


@endpoint(routes, "GET", "/keys/<key_id>", Contract(scope=Scope.ADMIN, answer=KeyDocument, problems=(404,)))
def get_key(principal: Principal, key_id: str) -> Response:
    """Get a key, without its secret."""
    with current_services().database.transaction() as session:
        return jsonify(key_document(auth.get_api_key(session, principal.tenant_id, key_id)))


@endpoint(routes, "DELETE", "/keys/<key_id>", Contract(scope=Scope.ADMIN, answer=KeyDocument, problems=(404,)))
def revoke_key(principal: Principal, key_id: str) -> Response:
    """End a key for good. It is refused within two seconds; asking again changes nothing."""
    with current_services().database.transaction() as session:
        key = Administration(session, actor_of(principal)).revoke_key(principal.tenant_id, key_id)
    return jsonify(key_document(key))


@endpoint(routes, "GET", "/users", Contract(scope=Scope.ADMIN, answer=UserList))
def list_users(principal: Principal) -> Response:
    """List the tenant's people, by address."""
    with current_services().database.transaction() as session:
        return jsonify(list_of([user_document(user) for user in auth.list_users(session, principal.tenant_id)]))


@endpoint(
    routes,
    "POST",
    "/users",
    Contract(
        scope=Scope.ADMIN,
        body=UserRequest,
        answer=NewUserDocument,
        status=201,
        answer_headers=CreatedHeaders,
        problems=(400, 409, 413, 415),
    ),
)
def create_user(principal: Principal, body: UserRequest) -> tuple[Response, int, dict[str, str]]:
    """Let a person in. Only operators can make an operator."""
    with current_services().database.transaction() as session:
        user, made = Administration(session, actor_of(principal)).create_user(
            principal.tenant_id, email=body.email, role=body.role, password=body.password
        )
    location = {"Location": url_for("api_account.get_user", user_id=user.id)}
    return secretly(user_document(user) | {"password": made}), 201, location


@endpoint(routes, "GET", "/users/<user_id>", Contract(scope=Scope.ADMIN, answer=UserDocument, problems=(404,)))
def get_user(principal: Principal, user_id: str) -> Response:
    """Get a person."""
    with current_services().database.transaction() as session:
        return jsonify(user_document(auth.get_user(session, principal.tenant_id, user_id)))


@endpoint(
    routes,
    "PATCH",
    "/users/<user_id>",
    Contract(scope=Scope.ADMIN, body=UserChangeRequest, answer=UserDocument, problems=(400, 404, 409, 413, 415)),
)
def change_user(principal: Principal, body: UserChangeRequest, user_id: str) -> Response:
    """Give a person another role or password, shut them out, or let them in again.

    A new password and shutting out end all of their sessions. The last administrator stays one.
    """
    with current_services().database.transaction() as session:
        user = Administration(session, actor_of(principal)).change_user(
            principal.tenant_id, user_id, UserChange(body.role, body.password, body.disabled)
        )
    return jsonify(user_document(user))


@endpoint(
    routes,
    "DELETE",
    "/users/<user_id>",
    Contract(scope=Scope.ADMIN, problems=(404, 409), responses={204: {"description": "They are gone"}}),
)
def remove_user(principal: Principal, user_id: str) -> tuple[str, int]:
    """Delete a person. What they did stays in the record."""
    with current_services().database.transaction() as session:
        Administration(session, actor_of(principal)).remove_user(principal.tenant_id, user_id)
    return "", 204


@endpoint(routes, "GET", "/audit", Contract(scope=Scope.ADMIN, query=AuditQuery, answer=AuditPage))
def list_audit(principal: Principal, query: AuditQuery) -> Response:
    """List the changes to who may do what in this tenant, newest first."""
    wanted = AuditFilter(principal.tenant_id, query.action, query.actor, query.target)
    with current_services().database.transaction() as session:
        entries, after = list_entries(session, wanted, limit=query.limit, before=query.after)
    return jsonify(page_of(entries, after))


def created_key(principal: Principal, tenant_id: str, body: KeyRequest) -> tuple[Response, int, dict[str, str]]:
    """Make the key that the body asks for, for that tenant."""
    services = current_services()
    with services.database.transaction() as session:
        key, secret = Administration(session, actor_of(principal)).create_key(
            tenant_id,
            name=body.name,
            scopes=body.scopes,
            environment=services.settings.environment,
            expires_at=body.expires_at,
            models=body.models,
        )
    location = {"Location": url_for("api_account.get_key", key_id=key.id)}
    return secretly(key_document(key) | {"key": secret}), 201, location


def secretly(document: dict[str, Any]) -> Response:
    """The document, which no cache may keep."""
    response = jsonify(document)
    response.headers["Cache-Control"] = "no-store"
    return response
