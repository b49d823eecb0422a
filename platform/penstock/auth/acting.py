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
    )


def note_sign_in(session: Session, user: User) -> None:
    """Write down that this person has signed in, and from where."""
    actor = Actor(ActorKind.USER, user.id, user.email, request.remote_addr, scopes=())
    record(session, actor, Action.USER_SIGNED_IN, tenant_id=user.tenant_id, target=user.id, details={})
