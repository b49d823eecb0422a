"""Who acts in a request, for the record."""

from flask import request
from sqlalchemy.orm import Session

from penstock.auth.audit import Action, Actor, ActorKind, record
from penstock.auth.models import User
from penstock.auth.services import Principal


def actor_of(principal: Principal) -> Actor:
    """The program that sends this request."""
    return Actor(
        kind=ActorKind.API_KEY,
        id=principal.key_id,
        name=principal.key_name,
        address=request.remote_addr,
        scopes=principal.scopes,
        models=principal.models,
        tenant_id=principal.tenant_id,
    )


def actor_for(user: User) -> Actor:
    """The person who sends this request. They change what is their own alone, and hand nothing out."""
    return Actor(ActorKind.USER, user.id, user.email, request.remote_addr, scopes=())


def note_sign_in(session: Session, user: User, *, through: str) -> None:
    """Write down that this person has signed in, from where, and by their password or through which issuer."""
    details = {"through": through}
    record(session, actor_for(user), Action.USER_SIGNED_IN, tenant_id=user.tenant_id, target=user.id, details=details)
