"""What the commands that administer share: whose tenant, and who acts."""

import getpass
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import click
from pydantic import BaseModel, ValidationError
from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from penstock.auth.administration import Administration
from penstock.auth.audit import Actor, ActorKind
from penstock.auth.models import Tenant
from penstock.auth.services import Scope
from penstock.auth.system_tenant import SYSTEM_TENANT_ID
from penstock.cli.database import transaction
from penstock.errors import NotFound
from penstock.problems import explain_validation
from penstock.settings import Settings

Model = TypeVar("Model", bound=BaseModel)

tenant_option: Final = click.option(
    "--tenant", "tenant", default="default", show_default=True, help="The tenant's name or id."
)


@contextmanager
def administering(settings: Settings) -> Iterator[tuple[Session, Administration]]:
    """A transaction, and what changes in it: in the name of the account that runs the command, who may do all."""
    account = getpass.getuser()
    actor = Actor(ActorKind.COMMAND, account, f"{account} on the command line", socket.gethostname(), tuple(Scope))
    with transaction(settings) as session:
        yield session, Administration(session, actor)


def find_tenant(session: Session, name: str) -> Tenant:
    """The tenant of that name or id. Raises `NotFound`, naming those that there are."""
    others = select(Tenant).where(Tenant.id != SYSTEM_TENANT_ID)
    tenant = session.scalars(others.where(or_(Tenant.id == name, Tenant.name == name))).first()
    if tenant is None:
        known = [each.name for each in session.scalars(others.order_by(Tenant.name).limit(10))]
        raise NotFound(
            f"no tenant {name!r}; there is {', '.join(known) or 'none yet: start `penstock up` once'}", field="tenant"
        )
    return tenant


def checked(model: type[Model], /, **members: Any) -> Model:
    """What was given, by the API's own rules. Raises `ValidationFailed` as it does."""
    try:
        return model.model_validate(members)
    except ValidationError as error:
        raise explain_validation(error) from None
