"""`penstock tenants` and `penstock audit`: organisations, and who changed what, on the server's own database."""

import json
from typing import Any

import click

from penstock.auth.audit import Action, AuditFilter, list_entries
from penstock.auth.models import Tenant
from penstock.auth.schemas import TenantChangeRequest, TenantRequest
from penstock.auth.services import list_tenants
from penstock.cli.administering import administering, checked, find_tenant
from penstock.cli.database import transaction
from penstock.cli.render import print_rows
from penstock.clock import iso
from penstock.settings import Settings

_LIMITS = ("max_queued_jobs", "requests_per_minute", "tokens_per_minute", "max_open_streams")
_HEADINGS = ("id", "name", "weight", *_LIMITS, "status")


@click.group()
def tenants() -> None:
    """Make, limit, suspend and erase organisations. Reads PENSTOCK_DATABASE_URL and the other settings."""


@tenants.command()
@click.argument("name")
def create(name: str) -> None:
    """Make an organisation and print its id."""
    wanted = checked(TenantRequest, name=name)
    with administering(Settings.from_environment()) as (_, administration):
        tenant = administration.create_tenant(**wanted.model_dump())
    click.echo(tenant.id)


@tenants.command("list")
def list_() -> None:
    """List the organisations with their limits; a dash is the installation's."""
    with transaction(Settings.from_environment()) as session:
        found = list_tenants(session)
    print_rows(_HEADINGS, [_row(tenant) for tenant in found])


@tenants.command("set")
@click.argument("tenant")
@click.argument("changes", nargs=-1, required=True, metavar="NAME=VALUE...")
def set_(tenant: str, changes: tuple[str, ...]) -> None:
    """Set limits of TENANT (name or id), such as max_queued_jobs=500; a dash as value is the installation's again."""
    wanted = checked(TenantChangeRequest, **dict(map(_assigned, changes)))
    with administering(Settings.from_environment()) as (session, administration):
        changed = administration.change_tenant(find_tenant(session, tenant).id, **wanted.changes())
    print_rows(_HEADINGS, [_row(changed)])


@tenants.command()
@click.argument("tenant")
def suspend(tenant: str) -> None:
    """Refuse the keys and people of TENANT (name or id), and begin none of its waiting jobs. Those that run end."""
    with administering(Settings.from_environment()) as (session, administration):
        suspended = administration.suspend_tenant(find_tenant(session, tenant).id)
    click.echo(f"{suspended.name} is suspended")


@tenants.command()
@click.argument("tenant")
def resume(tenant: str) -> None:
    """End the suspension of TENANT (name or id)."""
    with administering(Settings.from_environment()) as (session, administration):
        resumed = administration.resume_tenant(find_tenant(session, tenant).id)
    click.echo(f"{resumed.name} is resumed")


@tenants.command()
@click.argument("tenant")
@click.option("--yes", is_flag=True, help="Do not ask.")
def erase(tenant: str, yes: bool) -> None:
    """Delete TENANT (name or id), which must be suspended, with all that it has. The control processes do it."""
    with administering(Settings.from_environment()) as (session, administration):
        wanted = find_tenant(session, tenant)
        if not yes:
            click.confirm(f"Delete {wanted.name} ({wanted.id}) with all that it has, for good?", abort=True)
        administration.erase_tenant(wanted.id)
    click.echo(f"{wanted.id} is being erased; `penstock tenants list` shows it until it is gone")


@click.command()
@click.option("--tenant", help="The tenant's name or id; all without it.")
@click.option("--action", type=click.Choice([action.value for action in Action]))
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
def audit(tenant: str | None, action: str | None, limit: int) -> None:
    """Show who changed what, when, and from where, newest first."""
    with transaction(Settings.from_environment()) as session:
        tenant_id = find_tenant(session, tenant).id if tenant else None
        wanted = AuditFilter(tenant_id, Action(action) if action else None)
        entries, _ = list_entries(session, wanted, limit=limit)
    print_rows(
        ("at", "who", "from", "did", "to", "details"),
        [
            (
                str(iso(entry.created_at)),
                f"{entry.actor_kind} {entry.actor_name}",
                entry.address or "-",
                entry.action,
                entry.target,
                json.dumps(entry.details, ensure_ascii=False),
            )
            for entry in entries
        ],
    )


def _row(tenant: Tenant) -> tuple[str, ...]:
    values = (getattr(tenant, name) for name in _HEADINGS[:-1])
    cells = ("-" if value is None else f"{value:g}" if isinstance(value, float) else str(value) for value in values)
    return (*cells, _status(tenant))


def _status(tenant: Tenant) -> str:
    if tenant.erasing_since is not None:
        return "being erased"
    return "active" if tenant.suspended_at is None else "suspended"


def _assigned(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise click.BadParameter(f"{text!r} must read name=value", param_hint="NAME=VALUE")
    if value == "-":
        return name, None
    try:
        return name, value if name == "name" else json.loads(value)
    except ValueError:
        return name, value
