"""`client.keys`: the API keys of the tenant. All of it takes the scope `admin`."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final
from urllib.parse import quote

from penstock.client.documents import Document, parse
from penstock.client.jobs import given, in_utc
from penstock.client.reading import Asking

_PATH: Final = "/v1/keys"


class ApiKey(Document):
    """A key, by its `hint`. `key` is the key itself, which is there when it was just made, and None ever after."""

    id: str
    name: str
    hint: str
    scopes: list[str]
    models: list[str] | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    key: str | None = None


class _KeyList(Document):
    data: list[ApiKey]


class Keys:
    """The keys of the tenant."""

    def __init__(self, transport: Asking) -> None:
        self._transport = transport

    def create(
        self,
        name: str,
        *,
        scopes: Sequence[str] | None = None,
        expires_at: datetime | None = None,
        models: Sequence[str] | None = None,
    ) -> ApiKey:
        """A new key, with its `key`, which is shown this once. Without `scopes` it reads and writes jobs.

        Raises `Forbidden` where it could do what the key that asks cannot.
        """
        body = given(
            name=name,
            scopes=list(scopes) if scopes is not None else None,
            expires_at=in_utc(expires_at),
            models=list(models) if models is not None else None,
        )
        return parse(ApiKey, self._transport.request("POST", _PATH, body=body))

    def list(self) -> Sequence[ApiKey]:
        """All keys, newest first, also those that no longer work."""
        return parse(_KeyList, self._transport.request("GET", _PATH)).data

    def get(self, key_id: str) -> ApiKey:
        """The key, without its secret. Raises `NotFound`."""
        return parse(ApiKey, self._transport.request("GET", _path(key_id)))

    def revoke(self, key_id: str) -> ApiKey:
        """End it for good: it is refused within two seconds. Asking again changes nothing."""
        return parse(ApiKey, self._transport.request("DELETE", _path(key_id)))


def _path(key_id: str) -> str:
    return f"{_PATH}/{quote(key_id, safe='')}"
