"""Usage and budgets for tenants; usage of all, prices and tenants' budgets for operators."""

import csv
import io
from collections.abc import Sequence
from typing import Any, Final

from apiflask import APIBlueprint
from flask import Response, jsonify

from penstock.auth.acting import actor_of
from penstock.auth.audit import Action, record
from penstock.auth.services import Principal, Scope, get_tenant
from penstock.endpoints import Contract, endpoint
from penstock.services import current_services
from penstock.usage.budgets import list_budgets, set_budget
from penstock.usage.prices import list_prices, set_price
from penstock.usage.reports import Grouping, UsageRow, Wanted, report
from penstock.usage.schemas import (
    BudgetDocument,
    BudgetList,
    BudgetRequest,
    OperatorUsageQuery,
    PriceDocument,
    PricePage,
    PriceQuery,
    PriceRequest,
    UsagePage,
    UsageQuery,
    UsageRowDocument,
    budget_document,
    price_document,
    usage_document,
)

routes: Final = APIBlueprint("api_usage", __name__, url_prefix="/v1", tag="Usage")
operator_routes: Final = APIBlueprint("api_prices", __name__, url_prefix="/v1/admin", tag="Operation")
_NEXT: Final = "Penstock-Next"


@endpoint(routes, "GET", "/usage", Contract(scope=Scope.JOBS_READ, query=UsageQuery, answer=UsagePage))
def get_usage(principal: Principal, query: UsageQuery) -> Response:
    """Sum up what the tenant's finished jobs used and cost.

    As CSV (`format=csv`) the header `Penstock-Next` holds the next page's `after`.
    """
    return _answer(query, query.wanted(principal.tenant_id))


@endpoint(routes, "GET", "/budgets", Contract(scope=Scope.JOBS_READ, answer=BudgetList))
def get_budgets(principal: Principal) -> Response:
    """List what the tenant may spend, has spent, and has reserved for jobs that wait or run."""
    return _budgets(principal.tenant_id)


@endpoint(operator_routes, "GET", "/usage", Contract(scope=Scope.OPERATOR, query=OperatorUsageQuery, answer=UsagePage))
def get_all_usage(principal: Principal, query: OperatorUsageQuery) -> Response:  # noqa: ARG001 - operators see all
    """Sum up what the jobs of all tenants used, or of one."""
    return _answer(query, query.wanted(query.tenant))


@endpoint(operator_routes, "GET", "/prices", Contract(scope=Scope.OPERATOR, query=PriceQuery, answer=PricePage))
def get_prices(principal: Principal, query: PriceQuery) -> Response:  # noqa: ARG001 - as above
    """List prices, last set first."""
    with current_services().database.transaction() as session:
        found, after = list_prices(session, model_name=query.model, limit=query.limit, before=query.after)
        data = [price_document(price) for price in found]
    return jsonify({"object": "list", "data": data, "has_more": after is not None, "next": after})


@endpoint(
    operator_routes,
    "POST",
    "/prices",
    Contract(scope=Scope.OPERATOR, body=PriceRequest, answer=PriceDocument, status=201, problems=(400, 409, 413, 415)),
)
def create_price(principal: Principal, body: PriceRequest) -> tuple[Response, int]:
    """Set a model's price, from now or from a moment on. Jobs keep the price that was in force at their submission."""
    with current_services().database.transaction() as session:
        price = set_price(session, body.as_new(), created_by=f"{principal.key_name} ({principal.key_id})")
        return jsonify(price_document(price)), 201


@endpoint(
    operator_routes,
    "GET",
    "/tenants/<tenant_id>/budgets",
    Contract(scope=Scope.OPERATOR, answer=BudgetList, problems=(404,)),
)
def get_tenant_budgets(principal: Principal, tenant_id: str) -> Response:  # noqa: ARG001 - as above
    """List a tenant's budgets."""
    with current_services().database.transaction() as session:
        get_tenant(session, tenant_id)
    return _budgets(tenant_id)


@endpoint(
    operator_routes,
    "PUT",
    "/tenants/<tenant_id>/budgets",
    Contract(scope=Scope.OPERATOR, body=BudgetRequest, answer=BudgetDocument, problems=(400, 404, 413, 415)),
)
def put_tenant_budget(principal: Principal, body: BudgetRequest, tenant_id: str) -> Response:
    """Let a tenant spend so much in one currency, in all; what it has spent by then counts."""
    with current_services().database.transaction() as session:
        get_tenant(session, tenant_id)
        budget = set_budget(session, tenant_id, body.currency, body.amount)
        details = {"currency": body.currency, "amount": f"{body.amount:f}"}
        record(session, actor_of(principal), Action.BUDGET_SET, tenant_id=tenant_id, target=tenant_id, details=details)
        return jsonify(budget_document(budget))


def _budgets(tenant_id: str) -> Response:
    with current_services().database.transaction() as session:
        data = [budget_document(budget) for budget in list_budgets(session, tenant_id)]
    return jsonify({"object": "list", "data": data})


def _answer(query: UsageQuery, wanted: Wanted) -> Response:
    with current_services().database.transaction() as session:
        rows, after = report(session, wanted, limit=query.limit, after=query.after)
    if query.format == "csv":
        headers = {_NEXT: after} if after is not None else {}
        return Response(as_csv(wanted.groups, rows), content_type="text/csv; charset=utf-8", headers=headers)
    data = [usage_document(row) for row in rows]
    return jsonify({"object": "list", "data": data, "has_more": after is not None, "next": after})


def as_csv(groups: Sequence[Grouping], rows: Sequence[UsageRow]) -> str:
    """The rows under a line of headings. What a spreadsheet would take for a formula begins with a quote mark."""
    text = io.StringIO()
    documents = [usage_document(row) for row in rows]
    figures = [name for name in UsageRowDocument.model_fields if name != "group"]
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow([*(group.value for group in groups), *figures])
    for document in documents:
        cells: list[Any] = [*document["group"].values(), *(document[name] for name in figures)]
        writer.writerow([_harmless(cell) for cell in cells])
    return text.getvalue()


def _harmless(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in "=+-@\t\r" and cell else cell
