"""What a key may do within a request, beyond the scope that the route asks for."""

from penstock.auth.services import Principal, Scope
from penstock.errors import Forbidden, ModelNotAllowed


def refuse_model(principal: Principal, name: str) -> None:
    """Raise `ModelNotAllowed` when the key is not for the model of that name."""
    if not principal.may_use(name):
        allowed = sorted(principal.models or ())
        raise ModelNotAllowed(
            f"this key may use {', '.join(allowed)}, and not {name!r}", field="model", allowed=allowed
        )


def refuse_scope(principal: Principal, scope: Scope, field: str) -> None:
    """Raise `Forbidden` when the key may not ask for what the field says."""
    if not principal.may(scope):
        raise Forbidden(f"{field}: this needs a key with the scope {scope.value}", field=field, scope=scope.value)
