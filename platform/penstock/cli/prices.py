"""`penstock prices`: what models cost, and what tenants may spend, on the server's own database."""

import getpass
import socket
from datetime import datetime

import click

from penstock.auth.audit import Action, Actor, ActorKind, record
from penstock.auth.services import Scope
from penstock.cli.administering import checked, find_tenant
from penstock.cli.database import transaction
from penstock.cli.render import print_rows
from penstock.clock import iso
from penstock.settings import Settings
from penstock.usage.budgets import list_budgets, set_budget
from penstock.usage.models import Price, TenantBudget
from penstock.usage.prices import list_prices, set_price
from penstock.usage.schemas import BudgetRequest, PriceRequest

_HEADINGS = ("id", "model", "version", "currency", "input", "cached", "output", "device second", "from")
_BUDGET_HEADINGS = ("currency", "amount", "spent", "reserved")


@click.group()
def prices() -> None:
    """Say what models cost and what tenants may spend. Reads PENSTOCK_DATABASE_URL and the other settings."""


@prices.command("set")
@click.argument("model")
@click.option("--version", help="One version; all without a price of their own, if left out.")
@click.option("--currency", required=True, help="ISO 4217, such as EUR.")
@click.option("--input", "input_", required=True, help="A million prompt tokens that are computed.")
@click.option("--cached", required=True, help="A million prompt tokens that are found cached.")
@click.option("--output", required=True, help="A million generated tokens.")
@click.option("--device-second", default="0", show_default=True, help="A second of the device.")
@click.option("--from", "valid_from", type=click.DateTime(["%Y-%m-%dT%H:%M:%S%z"]), help="Not now, but from then on.")
def set_(
    model: str,
    version: str | None,
    currency: str,
    input_: str,
    cached: str,
    output: str,
    device_second: str,
    valid_from: datetime | None,
) -> None:
    """Set the price of MODEL. Jobs keep the price that was in force when they were submitted."""
    wanted = checked(
        PriceRequest,
        model=model,
        version=version,
        currency=currency,
        input=input_,
        cached=cached,
        output=output,
        device_second=device_second,
        valid_from=valid_from,
    )
    with transaction(Settings.from_environment()) as session:
        price = set_price(session, wanted.as_new(), created_by=f"{getpass.getuser()} on the command line")
        print_rows(_HEADINGS, [_row(price)])


@prices.command("list")
@click.option("--model", help="Those of one model.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
def list_(model: str | None, limit: int) -> None:
    """List prices, last set first; a dash is every version without a price of its own."""
    with transaction(Settings.from_environment()) as session:
        found, _ = list_prices(session, model_name=model, limit=limit)
    print_rows(_HEADINGS, [_row(price) for price in found])


@prices.command("budget")
@click.argument("tenant")
@click.argument("amount", required=False)
@click.argument("currency", required=False)
def budget(tenant: str, amount: str | None, currency: str | None) -> None:
    """Show what TENANT (name or id) may spend, or let it spend AMOUNT of CURRENCY in all."""
    if (amount is None) != (currency is None):
        raise click.UsageError("give AMOUNT and CURRENCY, or neither")
    with transaction(Settings.from_environment()) as session:
        tenant_id = find_tenant(session, tenant).id
        if amount is not None and currency is not None:
            wanted = checked(BudgetRequest, amount=amount, currency=currency)
            set_budget(session, tenant_id, currency, wanted.amount)
            details = {"currency": currency, "amount": f"{wanted.amount:f}"}
            record(session, _actor(), Action.BUDGET_SET, tenant_id=tenant_id, target=tenant_id, details=details)
        rows = [_budget_row(each) for each in list_budgets(session, tenant_id)]
    print_rows(_BUDGET_HEADINGS, rows)


def _actor() -> Actor:
    account = getpass.getuser()
    return Actor(ActorKind.COMMAND, account, f"{account} on the command line", socket.gethostname(), tuple(Scope))


def _row(price: Price) -> tuple[str, ...]:
    amounts = (f"{getattr(price, name):f}" for name in ("input", "cached", "output", "device_second"))
    return (
        price.id,
        price.model_name,
        price.model_version or "-",
        price.currency,
        *amounts,
        str(iso(price.valid_from)),
    )


def _budget_row(budget: TenantBudget) -> tuple[str, ...]:
    return (budget.currency, *(f"{getattr(budget, name):f}" for name in ("amount", "spent", "reserved")))
