"""`penstock keys`: API keys, made on the server's own database."""

from datetime import datetime

import click
from rich.table import Table
from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from penstock.auth.models import ApiKey, Tenant
from penstock.auth.services import Scope, bootstrap, create_api_key, list_api_keys, revoke_api_key
from penstock.cli.database import transaction
from penstock.cli.options import moment
from penstock.cli.render import console_for, printable
from penstock.clock import iso, utc_now
from penstock.errors import NotFound
from penstock.settings import Settings

_tenant_option = click.option(
    "--tenant", "tenant", default="default", show_default=True, help="The tenant's name or id."
)


@click.group()
def keys() -> None:
    """Create, list and revoke API keys. Reads PENSTOCK_DATABASE_URL and the other settings."""


@keys.command("bootstrap")
def bootstrap_() -> None:
    """On an empty database: make the first tenant, its administrator and an admin key, and print them, this once."""
    settings = Settings.from_environment()
    with transaction(settings) as session:
        made = bootstrap(session, environment=settings.environment)
    if made is None:
        raise click.ClickException("there is a tenant already; `penstock keys create` makes another key")
    click.echo(f"email\t{made.email}\npassword\t{made.password}\napi key\t{made.api_key}")


@keys.command()
@click.option("--name", required=True, help="What the key is for.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice([scope.value for scope in Scope]),
    help="May be repeated.  [default: jobs:read, jobs:write]",
)
@click.option(
    "--expires", type=moment, metavar="TIME", help="When it stops working, such as 90d or 2030-01-31T12:00:00Z."
)
@_tenant_option
def create(name: str, scopes: tuple[str, ...], expires: datetime | None, tenant: str) -> None:
    """Create a key and print it. It is shown this once and kept nowhere."""
    if expires is not None and expires <= utc_now():
        raise click.BadParameter("must lie in the future", param_hint="--expires")
    settings = Settings.from_environment()
    with transaction(settings) as session:
        key, secret = create_api_key(
            session,
            tenant_id=_tenant(session, tenant).id,
            name=name,
            scopes=map(Scope, scopes or (Scope.JOBS_READ, Scope.JOBS_WRITE)),
            environment=settings.environment,
            expires_at=expires,
        )
    console_for("stderr").print(f"{key.id} with {', '.join(key.scopes)}; this is its only appearance:", style="dim")
    click.echo(secret)


@keys.command("list")
@_tenant_option
def list_(tenant: str) -> None:
    """List the tenant's keys, newest first, also those that no longer work."""
    with transaction(Settings.from_environment()) as session:
        found = list_api_keys(session, _tenant(session, tenant).id)
    rows = [(key.id, printable(key.name), key.hint, " ".join(key.scopes), _standing(key)) for key in found]
    console = console_for()
    if not console.is_terminal:
        for row in rows:
            click.echo("\t".join(row))
        return
    table = Table("id", "name", "key", "scopes", "standing", box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console.print(table)


@keys.command()
@click.argument("key_id")
@_tenant_option
def revoke(key_id: str, tenant: str) -> None:
    """End a key for good."""
    with transaction(Settings.from_environment()) as session:
        key = revoke_api_key(session, _tenant(session, tenant).id, key_id)
    click.echo(f"{key.id} ({printable(key.name)}) is revoked")


def _tenant(session: Session, name: str) -> Tenant:
    tenant = session.scalars(select(Tenant).where(or_(Tenant.id == name, Tenant.name == name))).first()
    if tenant is None:
        known = session.scalars(select(Tenant.name).order_by(Tenant.name).limit(10)).all()
        raise NotFound(
            f"no tenant {name!r}; there is {', '.join(known) or 'none yet: start `penstock up` once'}", field="tenant"
        )
    return tenant


def _standing(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return f"revoked {iso(key.revoked_at)}"
    if key.expires_at is not None:
        return f"{'expired' if key.expires_at <= utc_now() else 'expires'} {iso(key.expires_at)}"
    return f"last used {iso(key.last_used_at)}" if key.last_used_at else "never used"
