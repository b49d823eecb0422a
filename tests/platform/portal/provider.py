"""A small real OpenID Connect provider: the code flow with PKCE and RS256, over loopback HTTP. It lies when told to."""

import base64
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import RSAKey

CLIENT_ID = "penstock"
CLIENT_SECRET = "only-for-tests"


@cache
def signing_key(name: str = "provider") -> RSAKey:
    """An RSA key of that name, made once: it takes a while."""
    return RSAKey.generate_key(2048, {"kid": name, "use": "sig", "alg": "RS256"}, private=True)


@dataclass
class Account:
    """Whom the provider says has signed in, and how the next ID token differs from an honest one."""

    claims: dict[str, Any] = field(
        default_factory=lambda: {"sub": "1234", "email": "ann@example.com", "email_verified": True}
    )
    lies: dict[str, Any] = field(default_factory=dict)
    """Claims that replace honest ones; None leaves the claim out."""
    key: RSAKey | None = None
    """Another key to sign with."""
    error: str | None = None
    """What the provider answers instead of a code."""
    algorithm: str = "RS256"


class Provider(ThreadingHTTPServer):
    """The provider. `codes` are those that were given out: what was asked for with each."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.account = Account()
        self.metadata: dict[str, Any] = {}
        self.codes: dict[str, dict[str, str]] = {}
        self.published = [signing_key()]

    @property
    def issuer(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def discovery(self) -> dict[str, Any]:
        return {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/jwks",
            "id_token_signing_alg_values_supported": ["RS256", "HS256", "none"],
        } | self.metadata

    def authorize(self, asked: dict[str, str]) -> str:
        """Where the browser is sent back to."""
        assert asked["response_type"] == "code"
        assert asked["client_id"] == CLIENT_ID
        assert asked["code_challenge_method"] == "S256"
        assert "openid" in asked["scope"].split()
        if self.account.error is not None:
            answer = {"error": self.account.error, "state": asked["state"]}
        else:
            code = secrets.token_urlsafe()
            self.codes[code] = asked
            answer = {"code": code, "state": asked["state"]}
        return f"{asked['redirect_uri']}?{urlencode(answer)}"

    def token(self, form: dict[str, str], authorization: str) -> tuple[int, dict[str, Any]]:
        """The answer of the token endpoint (RFC 6749, RFC 7636)."""
        expected = base64.b64encode(f"{CLIENT_ID}:{CLIENT_SECRET}".encode()).decode()
        if authorization != f"Basic {expected}":
            return 401, {"error": "invalid_client"}
        asked = self.codes.pop(form.get("code", ""), None)
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        if asked is None or asked["code_challenge"] != challenge or asked["redirect_uri"] != form.get("redirect_uri"):
            return 400, {"error": "invalid_grant"}
        return 200, {
            "access_token": secrets.token_urlsafe(),
            "token_type": "Bearer",
            "expires_in": 60,
            "id_token": self._id_token(asked["nonce"]),
        }

    def _id_token(self, nonce: str) -> str:
        now = int(time.time())
        honest = {"iss": self.issuer, "aud": CLIENT_ID, "iat": now, "exp": now + 60, "nonce": nonce}
        claims = honest | self.account.claims | self.account.lies
        claims = {name: value for name, value in claims.items() if value is not None}
        if self.account.algorithm == "none":
            parts = [{"alg": "none", "typ": "JWT"}, claims]
            return ".".join(
                [*(base64.urlsafe_b64encode(json.dumps(p).encode()).rstrip(b"=").decode() for p in parts), ""]
            )
        key = self.account.key or self.published[0]
        return jwt.encode({"alg": self.account.algorithm, "kid": key.kid}, claims, key)


class _Handler(BaseHTTPRequestHandler):
    server: Provider

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        if address.path == "/.well-known/openid-configuration":
            self._answer(200, self.server.discovery())
        elif address.path == "/jwks":
            self._answer(200, {"keys": [key.as_dict(private=False) for key in self.server.published]})
        elif address.path == "/authorize":
            self.send_response(302)
            self.send_header("Location", self.server.authorize(_flat(address.query)))
            self.end_headers()
        else:
            self._answer(404, {})

    def do_POST(self) -> None:
        form = _flat(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self._answer(*self.server.token(form, self.headers.get("Authorization", "")))

    def _answer(self, status: int, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


def _flat(query: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(query).items()}


@contextmanager
def running_provider() -> Iterator[Provider]:
    """A provider, while the block runs."""
    provider = Provider()
    thread = threading.Thread(target=provider.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield provider
    finally:
        provider.shutdown()
        thread.join()
        provider.server_close()
