"""Signing in through an OpenID Connect provider: the authorization code flow with PKCE, state and nonce, by Authlib.

The provider says who somebody is; whether they are let in, where and as what is decided here.
"""

from dataclasses import dataclass
from typing import Any, Final

import requests
from authlib.common.errors import AuthlibBaseError
from authlib.integrations.base_client import MismatchingStateError
from authlib.integrations.flask_client import OAuth
from flask import Flask
from joserfc.errors import JoseError
from sqlalchemy import select
from sqlalchemy.orm import Session
from werkzeug.wrappers import Response

from penstock.auth.acting import actor_for
from penstock.auth.audit import Action, record
from penstock.auth.models import Tenant, User
from penstock.auth.services import Role, get_tenant, normalised_email, refuse_suspended
from penstock.errors import Forbidden, ServiceUnavailable, SettingsError, Unauthenticated
from penstock.ids import new_id
from penstock.logs import get_logger
from penstock.settings import Settings, variable_name

_TIMEOUT_SECONDS: Final = 5.0
_ALGORITHMS: Final = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
)
log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Identity:
    """Somebody, as the provider knows them. `email` is theirs for certain, or None."""

    issuer: str
    subject: str
    email: str | None


class OidcProvider:
    """The configured provider, asked when somebody signs in. Its documents are read at the first sign-in and kept."""

    def __init__(self, app: Flask, settings: Settings) -> None:
        assert settings.oidc_issuer is not None
        if settings.oidc_client_id is None or settings.oidc_client_secret is None:
            missing = "oidc_client_id" if settings.oidc_client_id is None else "oidc_client_secret"
            raise SettingsError(f"{variable_name(missing)}: must be set where {variable_name('oidc_issuer')} is")
        self.issuer: Final = settings.oidc_issuer.rstrip("/")
        self._client_id = settings.oidc_client_id
        self._client = OAuth(app).register(
            "oidc",
            client_id=settings.oidc_client_id,
            client_secret=settings.oidc_client_secret.get_secret_value(),
            server_metadata_url=f"{self.issuer}/.well-known/openid-configuration",
            client_kwargs={
                "scope": "openid email profile",
                "code_challenge_method": "S256",
                "default_timeout": _TIMEOUT_SECONDS,
            },
        )

    def send_there(self, callback: str) -> Response:
        """A redirect to the provider, which sends the person back to `callback`.

        Raises `ServiceUnavailable` when the provider does not answer.
        """
        try:
            self._check_metadata()
            response: Response = self._client.authorize_redirect(callback)
        except (AuthlibBaseError, requests.RequestException, RuntimeError, ValueError) as error:
            raise _not_answering(error) from error
        return response

    def who_came_back(self) -> Identity:
        """Whom the request to the callback brings.

        Raises `Unauthenticated` when it brings nobody who can be believed, and `ServiceUnavailable` as before.
        """
        try:
            self._check_metadata()
            token = self._client.authorize_access_token(claims_options=self._expected_claims())
        except MismatchingStateError as error:
            raise Unauthenticated("this sign-in was begun elsewhere or too long ago; begin again") from error
        except (AuthlibBaseError, JoseError) as error:
            log.warning("sign_in.provider_refused", error=str(error.error or type(error).__name__))
            raise Unauthenticated("the identity provider did not confirm who you are; begin again") from error
        except (requests.RequestException, RuntimeError, ValueError) as error:
            raise _not_answering(error) from error
        claims = token.get("userinfo")
        if not claims:
            raise Unauthenticated("the identity provider did not say who you are")
        return self._identity(claims)

    def _identity(self, claims: dict[str, Any]) -> Identity:
        email = claims.get("email") if claims.get("email_verified") is True else None
        return Identity(self.issuer, str(claims["sub"]), normalised_email(email) if email else None)

    def _expected_claims(self) -> dict[str, Any]:
        return {
            "iss": {"essential": True, "value": self._client.server_metadata["issuer"]},
            "aud": {"essential": True, "value": self._client_id},
        }

    def _check_metadata(self) -> None:
        """Refuse the documents of another issuer, and signatures that anybody could make (OpenID Discovery 4.3)."""
        metadata = self._client.load_server_metadata()
        if str(metadata.get("issuer", "")).rstrip("/") != self.issuer:
            self._client.server_metadata.pop("_loaded_at", None)
            raise ValueError(f"the issuer calls itself {metadata.get('issuer')!r}")
        offered = set(metadata.get("id_token_signing_alg_values_supported") or ["RS256"])
        metadata["id_token_signing_alg_values_supported"] = sorted(offered & _ALGORITHMS) or ["RS256"]


def find_or_let_in(session: Session, identity: Identity, *, tenant_name: str | None) -> User:
    """The person with that identity.

    At their first sign-in they are found by their address, if they were let in before; otherwise they become a member
    of the tenant, where one is named. Raises `Forbidden` for everybody else and for who was shut out, and
    `TenantSuspended`.
    """
    user = _known(session, identity) or _invited(session, identity) or _let_in(session, identity, tenant_name)
    if user is None:
        who = identity.email or "this account, whose address the identity provider does not vouch for,"
        raise Forbidden(f"{who} was not let in; ask an administrator")
    if user.disabled_at is not None:
        raise Forbidden("this account was shut out; ask an administrator")
    refuse_suspended(get_tenant(session, user.tenant_id))
    return user


def _known(session: Session, identity: Identity) -> User | None:
    return session.scalars(
        select(User).where(User.oidc_issuer == identity.issuer, User.oidc_subject == identity.subject)
    ).one_or_none()


def _invited(session: Session, identity: Identity) -> User | None:
    """The person with that address who has signed in through no provider yet; from now on they are known."""
    user = session.scalars(
        select(User).where(User.email == identity.email, User.oidc_subject.is_(None)).with_for_update()
    ).one_or_none()
    if user is not None:
        user.oidc_issuer, user.oidc_subject = identity.issuer, identity.subject
        _record(session, user, Action.USER_CHANGED, {"identity": identity.issuer})
    return user


def _let_in(session: Session, identity: Identity, tenant_name: str | None) -> User | None:
    if tenant_name is None or identity.email is None:
        return None
    if session.scalar(select(User.id).where(User.email == identity.email)) is not None:
        return None  # somebody else's, who signs in as another person of the provider's
    tenant = session.scalars(select(Tenant).where(Tenant.name == tenant_name)).one_or_none()
    if tenant is None:
        raise ServiceUnavailable(f"{variable_name('oidc_tenant')}: there is no tenant {tenant_name!r}")
    user = User(
        id=new_id("usr"),
        tenant_id=tenant.id,
        email=identity.email,
        password_hash=None,
        role=Role.MEMBER.value,
        oidc_issuer=identity.issuer,
        oidc_subject=identity.subject,
    )
    session.add(user)
    session.flush()
    _record(session, user, Action.USER_CREATED, {"email": user.email, "role": user.role, "identity": identity.issuer})
    return user


def _record(session: Session, user: User, action: Action, details: dict[str, Any]) -> None:
    record(session, actor_for(user), action, tenant_id=user.tenant_id, target=user.id, details=details)


def _not_answering(error: Exception) -> ServiceUnavailable:
    log.error("sign_in.provider_unavailable", error=type(error).__name__, detail=str(error))
    return ServiceUnavailable("the identity provider does not answer as it should; try again in a moment")
