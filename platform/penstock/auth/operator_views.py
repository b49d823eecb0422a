"""What operators do: the tenants of the installation, a tenant's first key, and the record of all changes."""

from typing import Final

from apiflask import APIBlueprint
from flask import Response, jsonify, url_for

from penstock.auth import services as auth
from penstock.auth.acting import actor_of
from penstock.auth.administration import Administration
from penstock.auth.audit import AuditFilter, list_entries
from penstock.auth.documents import (
    AuditPage,
    NewKeyDocument,
    TenantDocument,
    TenantList,
    list_of,
    page_of,
    tenant_document,
)
from penstock.auth.schemas import KeyRequest, OperatorAuditQuery, TenantChangeRequest, TenantRequest
from penstock.auth.services import Principal, Scope
from penstock.auth.views import CreatedHeaders, created_key
from penstock.endpoints import Contract, endpoint
from penstock.services import current_services

routes: Final = APIBlueprint("api_admin", __name__, url_prefix="/v1/admin", tag="Operation")


@endpoint(routes, "GET", "/tenants", Contract(scope=Scope.OPERATOR, answer=TenantList))
def list_tenants(principal: Principal) -> Response:  # noqa: ARG001 - every operator sees all
    """List the tenants, by name."""
    with current_services().database.transaction() as session:
        return jsonify(list_of([tenant_document(tenant) for tenant in auth.list_tenants(session)]))


@endpoint(
    routes,
    "POST",
    "/tenants",
    Contract(
        scope=Scope.OPERATOR,
        body=TenantRequest,
        answer=TenantDocument,
        status=201,
        answer_headers=CreatedHeaders,
        problems=(400, 409, 413, 415),
    ),
)
def create_tenant(principal: Principal, body: TenantRequest) -> tuple[Response, int, dict[str, str]]:
    """Make a tenant. `POST /v1/admin/tenants/{tenant_id}/keys` makes its first key."""
    with current_services().database.transaction() as session:
        tenant = Administration(session, actor_of(principal)).create_tenant(**body.model_dump())
    return jsonify(tenant_document(tenant)), 201, {"Location": url_for("api_admin.get_tenant", tenant_id=tenant.id)}


@endpoint(routes, "GET", "/tenants/<tenant_id>", Contract(scope=Scope.OPERATOR, answer=TenantDocument, problems=(404,)))
def get_tenant(principal: Principal, tenant_id: str) -> Response:  # noqa: ARG001 - every operator sees all
    """Get a tenant with its limits."""
    with current_services().database.transaction() as session:
        return jsonify(tenant_document(auth.get_tenant(session, tenant_id)))


@endpoint(
    routes,
    "PATCH",
    "/tenants/<tenant_id>",
    Contract(
        scope=Scope.OPERATOR,
        body=TenantChangeRequest,
        answer=TenantDocument,
        problems=(400, 404, 409, 413, 415),
    ),
)
def change_tenant(principal: Principal, body: TenantChangeRequest, tenant_id: str) -> Response:
    """Give a tenant another name, weight or limit. It holds within two seconds."""
    with current_services().database.transaction() as session:
        tenant = Administration(session, actor_of(principal)).change_tenant(tenant_id, **body.changes())
    return jsonify(tenant_document(tenant))


@endpoint(
    routes,
    "POST",
    "/tenants/<tenant_id>/suspend",
    Contract(scope=Scope.OPERATOR, answer=TenantDocument, problems=(404, 409)),
)
def suspend_tenant(principal: Principal, tenant_id: str) -> Response:
    """Suspend a tenant. Within two seconds its keys and people are refused, and none of its waiting jobs is begun.

    Jobs that run end as ever. Asking again changes nothing.
    """
    with current_services().database.transaction() as session:
        tenant = Administration(session, actor_of(principal)).suspend_tenant(tenant_id)
    return jsonify(tenant_document(tenant))


@endpoint(
    routes,
    "POST",
    "/tenants/<tenant_id>/resume",
    Contract(scope=Scope.OPERATOR, answer=TenantDocument, problems=(404, 409)),
)
def resume_tenant(principal: Principal, tenant_id: str) -> Response:
    """End a tenant's suspension: its keys work again, and what waits takes its turns."""
    with current_services().database.transaction() as session:
        tenant = Administration(session, actor_of(principal)).resume_tenant(tenant_id)
    return jsonify(tenant_document(tenant))


@endpoint(
    routes,
    "DELETE",
    "/tenants/<tenant_id>",
    Contract(scope=Scope.OPERATOR, answer=TenantDocument, status=202, problems=(404, 409)),
)
def erase_tenant(principal: Principal, tenant_id: str) -> tuple[Response, int]:
    """Erase a suspended tenant with all that it has, for good. It goes on after the answer, until the tenant is 404.

    One entry of the record stays, which says that a tenant of that id was erased.
    """
    with current_services().database.transaction() as session:
        tenant = Administration(session, actor_of(principal)).erase_tenant(tenant_id)
    return jsonify(tenant_document(tenant)), 202


@endpoint(
    routes,
    "POST",
    "/tenants/<tenant_id>/keys",
    Contract(
        scope=Scope.OPERATOR,
        body=KeyRequest,
        answer=NewKeyDocument,
        status=201,
        answer_headers=CreatedHeaders,
        problems=(400, 404, 413, 415),
    ),
)
def create_tenant_key(principal: Principal, body: KeyRequest, tenant_id: str) -> tuple[Response, int, dict[str, str]]:
    """Make a key for a tenant, such as its first, of scope `admin`, with which it makes its own."""
    with current_services().database.transaction() as session:
        auth.get_tenant(session, tenant_id)
    return created_key(principal, tenant_id, body)


@endpoint(routes, "GET", "/audit", Contract(scope=Scope.OPERATOR, query=OperatorAuditQuery, answer=AuditPage))
def list_all_audit(principal: Principal, query: OperatorAuditQuery) -> Response:  # noqa: ARG001 - as above
    """List the changes to who may do what in all tenants or in one, newest first."""
    wanted = AuditFilter(query.tenant, query.action, query.actor, query.target)
    with current_services().database.transaction() as session:
        entries, after = list_entries(session, wanted, limit=query.limit, before=query.after)
    return jsonify(page_of(entries, after))
