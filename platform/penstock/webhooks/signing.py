"""Signatures of Standard Webhooks 1.0 (https://www.standardwebhooks.com): `v1,<base64 HMAC-SHA256(id.timestamp.body)>`.

Standard library alone: the Python client verifies with it, where nothing else of the platform is installed.
"""

import base64
import hashlib
import hmac
import secrets as randomness

from penstock.errors import PenstockError

SECRET_PREFIX = "whsec_"  # noqa: S105 - the prefix of every secret is public
_SECRET_BYTES = 32


class SecretInvalid(PenstockError):
    """A webhook secret is not `whsec_` followed by base64."""

    code = "webhook_secret_invalid"
    title = "The webhook secret is not one"


def new_secret() -> str:
    """A fresh secret of 256 random bits."""
    return SECRET_PREFIX + base64.b64encode(randomness.token_bytes(_SECRET_BYTES)).decode()


def sign(secret: str, webhook_id: str, timestamp: int, body: bytes) -> str:
    """One signature as it stands in the header `webhook-signature`. `timestamp` is in Unix seconds."""
    content = f"{webhook_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(_key(secret), content, hashlib.sha256)).decode()


def is_signed(header: str, secret: str, webhook_id: str, timestamp: int, body: bytes) -> bool:
    """Whether one of the header's signatures, separated by spaces, is that of `secret`."""
    expected = sign(secret, webhook_id, timestamp, body).encode()
    return any(hmac.compare_digest(expected, given.encode()) for given in header.split())


def _key(secret: str) -> bytes:
    encoded = secret.removeprefix(SECRET_PREFIX)
    try:
        key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except ValueError:  # binascii.Error is one, and so is text beyond ASCII
        key = b""
    if not key:
        raise SecretInvalid("a webhook secret is whsec_ followed by base64, as the tenant's page shows it")
    return key
