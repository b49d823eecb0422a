"""Where the server is and with which key: what was given, else `PENSTOCK_URL` and `PENSTOCK_API_KEY`.

The environment is read in `penstock.settings` alone, but for these two: that module is the server's and needs
pydantic-settings, which the bare client installs without.
"""

import os
from dataclasses import dataclass, field
from typing import Final

import httpx

from penstock.errors import SettingsError

URL_VARIABLE: Final = "PENSTOCK_URL"
KEY_VARIABLE: Final = "PENSTOCK_API_KEY"
DEFAULT_URL: Final = "http://127.0.0.1:8080"


@dataclass(frozen=True, slots=True)
class Connection:
    """The server's address, without a slash at its end, and the API key, which no `repr` shows."""

    url: str
    api_key: str = field(repr=False)


def connection(url: str | None, api_key: str | None) -> Connection:
    """What was given, completed from the environment. Raises `SettingsError` naming what is missing or wrong."""
    address = url or os.environ.get(URL_VARIABLE) or DEFAULT_URL
    key = api_key or os.environ.get(KEY_VARIABLE)
    if not key:
        raise SettingsError(
            f"no API key: set {KEY_VARIABLE} (or give --api-key, api_key=...) to one that reads psk_..."
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise SettingsError(f"{KEY_VARIABLE} is no API key: one reads psk_... and holds letters, digits and _ alone")
    return Connection(_checked(address).rstrip("/"), key)


def _checked(address: str) -> str:
    try:
        url = httpx.URL(address)
    except httpx.InvalidURL:
        url = httpx.URL("")
    if url.scheme not in ("http", "https") or not url.host:
        raise SettingsError(f"{URL_VARIABLE} is {address!r}: it must be the server's address, such as {DEFAULT_URL}")
    return address
