"""The text of an API key: `psk_<environment>_<secret><checksum>`.

The secret is 256 random bits in 43 characters of base 62, the checksum the CRC-32 of all that precedes it in 6, so
that a mistyped key is told from an unknown one without asking the database, and scanners recognise a leaked one.
"""

import hashlib
import re
import secrets
import zlib
from typing import Final

from penstock.errors import Unauthenticated

_ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SECRET_LENGTH: Final = 43
_CHECKSUM_LENGTH: Final = 6
_SHAPE: Final = re.compile(rf"psk_([a-z0-9]{{1,12}})_[0-9A-Za-z]{{{_SECRET_LENGTH + _CHECKSUM_LENGTH}}}")
_HINT_LENGTH: Final = 4


def generate_key(environment: str) -> str:
    """A fresh key of that environment."""
    body = f"psk_{environment}_{_base62(secrets.randbits(256), _SECRET_LENGTH)}"
    return body + _checksum(body)


def check_key(presented: str, environment: str) -> None:
    """Raise `Unauthenticated`, saying what is wrong, unless the text can be a key of this environment."""
    shape = _SHAPE.fullmatch(presented)
    if shape is None:
        raise Unauthenticated(
            f"this is not an API key: one looks like psk_{environment}_ and "
            f"{_SECRET_LENGTH + _CHECKSUM_LENGTH} letters and digits"
        )
    if _checksum(presented[:-_CHECKSUM_LENGTH]) != presented[-_CHECKSUM_LENGTH:]:
        raise Unauthenticated("the API key is mistyped or cut off: its checksum does not match")
    if shape[1] != environment:
        raise Unauthenticated(f"the API key is for the environment {shape[1]!r}; this server is {environment!r}")


def digest_of(key: str) -> bytes:
    """What the database keeps of a key."""
    return hashlib.sha256(key.encode()).digest()


def hint_of(key: str) -> str:
    """Enough of a key for its owner to recognise it: `psk_live_...` and its last four characters."""
    return f"{key.rsplit('_', 1)[0]}_...{key[-_HINT_LENGTH:]}"


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), _CHECKSUM_LENGTH)


def _base62(number: int, length: int) -> str:
    characters = []
    for _ in range(length):
        number, remainder = divmod(number, 62)
        characters.append(_ALPHABET[remainder])
    return "".join(reversed(characters))
