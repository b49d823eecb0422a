"""`penstock users`: people who sign in to the portal, on the server's own database."""

import sys
from typing import Final

import click
from sqlalchemy import select
from sqlalchemy.orm import Session

from penstock.auth.administration import UserChange
from penstock.auth.models import User
from penstock.auth.schemas import UserChangeRequest, UserRequest
from penstock.auth.services import Role, list_users, normalised_email
from penstock.cli.administering import administering, checked, find_tenant, tenant_option
from penstock.cli.database import transaction
from penstock.cli.render import console_for, print_rows
from penstock.clock import iso
from penstock.errors import NotFound
from penstock.settings import Settings

_role: Final = click.Choice([role.value for role in Role])
_password_option: Final = click.option(
    "--password-stdin", is_flag=True, help="Read the password from standard input; one is made and printed without."
)


@click.group()
def users() -> None:
    """Let people in, change what they may do, shut them out. Reads PENSTOCK_DATABASE_URL and the other settings."""


@users.command()
@click.argument("email")
@click.option("--role", type=_role, default=Role.MEMBER.value, show_default=True)
@_password_option
@tenant_option
def create(email: str, role: str, password_stdin: bool, tenant: str) -> None:
    """Let the person with that address in."""
    wanted = checked(UserRequest, email=email, role=Role(role), password=_read_password(password_stdin))
    with administering(Settings.from_environment()) as (session, administration):
        user, made = administration.create_user(
            find_tenant(session, tenant).id, email=wanted.email, role=wanted.role, password=wanted.password
        )
    console_for("stderr").print(f"{user.id} signs in as {user.email}, {user.role}", style="dim")
    if made is not None:
        click.echo(made)


@users.command("list")
@tenant_option
def list_(tenant: str) -> None:
    """List the tenant's people, by address."""
    with transaction(Settings.from_environment()) as session:
        found = list_users(session, find_tenant(session, tenant).id)
    print_rows(
        ("id", "email", "role", "standing"), [(user.id, user.email, user.role, _standing(user)) for user in found]
    )


@users.command()
@click.argument("email")
@click.option("--role", type=_role)
@click.option("--disable/--enable", "disabled", default=None, help="Shut out, ending every session, or let in again.")
@_password_option
@tenant_option
def change(email: str, role: str | None, disabled: bool | None, password_stdin: bool, tenant: str) -> None:
    """Give a person another role or password, shut them out, or let them in again."""
    if role is None and disabled is None and not password_stdin:
        raise click.UsageError("give at least one of --role, --disable, --enable and --password-stdin")
    wanted = checked(
        UserChangeRequest,
        role=Role(role) if role else None,
        password=_read_password(password_stdin),
        disabled=disabled,
    )
    with administering(Settings.from_environment()) as (session, administration):
        tenant_id = find_tenant(session, tenant).id
        user = administration.change_user(
            tenant_id, _find(session, tenant_id, email), UserChange(wanted.role, wanted.password, wanted.disabled)
        )
    click.echo(f"{user.email}\t{user.role}\t{_standing(user)}")


@users.command()
@click.argument("email")
@tenant_option
def remove(email: str, tenant: str) -> None:
    """Delete a person; what they did stays in the record."""
    with administering(Settings.from_environment()) as (session, administration):
        tenant_id = find_tenant(session, tenant).id
        administration.remove_user(tenant_id, _find(session, tenant_id, email))
    click.echo(f"{normalised_email(email)} is removed")


def _read_password(from_stdin: bool) -> str | None:
    return sys.stdin.readline().rstrip("\n") if from_stdin else None


def _find(session: Session, tenant_id: str, email: str) -> str:
    found = session.scalar(select(User.id).where(User.tenant_id == tenant_id, User.email == normalised_email(email)))
    if found is None:
        raise NotFound(f"nobody signs in as {email!r} there", field="email")
    return found


def _standing(user: User) -> str:
    if user.disabled_at is not None:
        return f"shut out {iso(user.disabled_at)}"
    return f"signed in {iso(user.last_login_at)}" if user.last_login_at else "never signed in"
