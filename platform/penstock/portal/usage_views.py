"""The page of usage: what finished jobs used and cost by day, model, key and tag, and what may still be spent."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final

from flask import Blueprint, Response, render_template, request
from sqlalchemy.orm import Session

from penstock.auth import services as auth
from penstock.clock import utc_now
from penstock.portal.guard import check_form, guard, tenant_id
from penstock.portal.usage_picture import axis, every_day, groups, short
from penstock.problems import refuse_field
from penstock.services import current_services
from penstock.usage.budgets import list_budgets
from penstock.usage.models import TenantBudget
from penstock.usage.reports import Grouping, UsageRow, Wanted, report
from penstock.usage.views import as_csv

blueprint = Blueprint("portal_usage", __name__, url_prefix="/usage")
blueprint.before_request(check_form)
blueprint.before_request(guard)
SPANS: Final = {"7": "7 days", "30": "30 days", "90": "90 days"}
GROUPS: Final = {"model": "Model", "version": "Version", "key": "Key", "tag": "Tag"}
_MOST_ROWS: Final = 1000


@dataclass(frozen=True, slots=True)
class Asked:
    """What the address asks for: the last `days`, today with them, told apart `by`."""

    days: int
    by: str

    @property
    def since(self) -> datetime:
        return datetime.combine(self.first, time(), UTC)

    @property
    def first(self) -> date:
        return utc_now().date() - timedelta(days=self.days - 1)

    def wanted(self, *groups: Grouping) -> Wanted:
        return Wanted(groups, tenant_id(), since=self.since)


@blueprint.get("")
def index() -> str:
    """Usage by day as a picture and by group as a table."""
    asked = _asked()
    with current_services().database.transaction() as session:
        rows, more = report(session, asked.wanted(Grouping(asked.by)), limit=_MOST_ROWS)
        by_day, _ = report(session, asked.wanted(Grouping.DAY), limit=_MOST_ROWS)
        budgets = list_budgets(session, tenant_id())
        names = _key_names(session) if asked.by == Grouping.KEY else {}
    days = every_day(asked.first, asked.days, by_day)
    most = max(day.tokens for day in days)
    return render_template(
        "portal/usage/index.html", asked=asked, rows=groups(rows, asked.by), more=more, days=days, spans=SPANS,
        groups=GROUPS, totals=_totals(by_day), budgets=[_budget(each) for each in budgets], names=names,
        most=most, axis=axis(most) if most else None, short=short,
    )  # fmt: skip


@blueprint.get("/table.csv")
def as_table() -> Response:
    """The same rows by day and group for a spreadsheet."""
    asked = _asked()
    groups = [Grouping.DAY, Grouping(asked.by)]
    with current_services().database.transaction() as session:
        rows, _ = report(session, asked.wanted(*groups), limit=_MOST_ROWS)
    headers = {"Content-Disposition": f"attachment; filename=usage-{asked.by}-{asked.days}-days.csv"}
    return Response(as_csv(groups, rows), content_type="text/csv; charset=utf-8", headers=headers)


def _asked() -> Asked:
    days, by = request.args.get("days", "30"), request.args.get("by", "model")
    if days not in SPANS:
        raise refuse_field("days", "is no span that this page knows", f"choose among {', '.join(SPANS)}")
    if by not in GROUPS:
        raise refuse_field("by", "is nothing that usage is told apart by", f"choose among {', '.join(GROUPS)}")
    return Asked(int(days), by)


def _totals(rows: Sequence[UsageRow]) -> dict[str, Any]:
    """Sums over all days; money by currency, for currencies are never added."""
    costs: dict[str, Decimal] = {}
    for row in rows:
        if row.currency is not None and row.cost is not None:
            costs[row.currency] = costs.get(row.currency, Decimal(0)) + row.cost
    names = ("jobs", "prompt_tokens", "cached_tokens", "output_tokens", "device_seconds")
    return {name: sum(getattr(row, name) for row in rows) for name in names} | {"costs": costs}


def _budget(budget: TenantBudget) -> dict[str, Any]:
    taken = budget.spent + budget.reserved
    share = float(min(taken / budget.amount, Decimal(1))) if budget.amount else 1.0
    return {"budget": budget, "share": share, "left": max(budget.amount - taken, Decimal(0))}


def _key_names(session: Session) -> dict[str, str]:
    return {key.id: key.name for key in auth.list_api_keys(session, tenant_id())}
