"""`penstock keys`: API keys, made on the server's own database."""

from datetime import datetime

import click

from penstock.auth.models import ApiKey
from penstock.auth.schemas import KeyRequest
from penstock.auth.services import Scope, bootstrap, list_api_keys
from penstock.cli.administering import administering, checked, find_tenant, tenant_option
from penstock.cli.database import transaction
from penstock.cli.options import moment
from penstock.cli.render import console_for, print_rows, printable
from penstock.clock import iso, utc_now
from penstock.settings import Settings


@click.group()
def keys() -> None:
    """Create, list and revoke API keys. Reads PENSTOCK_DATABASE_URL and the other settings."""


@keys.command("bootstrap")
def bootstrap_() -> None:
    """On an empty database: make the first tenant, its operator and a key for everything, and print them, this once."""
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
@click.option("--model", "models", multiple=True, help="A model that it may use; all without. May be repeated.")
@click.option(
    "--expires", type=moment, metavar="TIME", help="When it stops working, such as 90d or 2030-01-31T12:00:00Z."
)
@tenant_option
def create(name: str, scopes: tuple[str, ...], models: tuple[str, ...], expires: datetime | None, tenant: str) -> None:
    """Create a key and print it. It is shown this once and kept nowhere."""
    if expires is not None and expires <= utc_now():
        raise click.BadParameter("must lie in the future", param_hint="--expires")
    given = {"scopes": list(map(Scope, scopes)) or None, "models": list(models) or None}
    wanted = checked(KeyRequest, name=name, **{option: value for option, value in given.items() if value})
    settings = Settings.from_environment()
    with administering(settings) as (session, administration):
        key, secret = administration.create_key(
            find_tenant(session, tenant).id,
            name=wanted.name,
            scopes=wanted.scopes,
            environment=settings.environment,
            expires_at=expires,
            models=wanted.models,
        )
    console_for("stderr").print(f"{key.id} with {', '.join(key.scopes)}; this is its only appearance:", style="dim")
    click.echo(secret)


@keys.command("list")
@tenant_option
def list_(tenant: str) -> None:
    """List the tenant's keys, newest first, also those that no longer work."""
    with transaction(Settings.from_environment()) as session:
        found = list_api_keys(session, find_tenant(session, tenant).id)
    print_rows(
        ("id", "name", "key", "scopes", "models", "standing"),
        [
            (key.id, key.name, key.hint, " ".join(key.scopes), " ".join(key.models or ["all"]), _standing(key))
            for key in found
        ],
    )


@keys.command()
@click.argument("key_id")
@tenant_option
def revoke(key_id: str, tenant: str) -> None:
    """End a key for good."""
    with administering(Settings.from_environment()) as (session, administration):
        key = administration.revoke_key(find_tenant(session, tenant).id, key_id)
    click.echo(f"{key.id} ({printable(key.name)}) is revoked")


def _standing(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return f"revoked {iso(key.revoked_at)}"
    if key.expires_at is not None:
        return f"{'expired' if key.expires_at <= utc_now() else 'expires'} {iso(key.expires_at)}"
    return f"last used {iso(key.last_used_at)}" if key.last_used_at else "never used"
