"""How a prompt begins, in 64 bits: what lets a claim prefer jobs whose beginning a worker has in its cache.

It is a hint, and no lookup in the cache: the fingerprint covers a prompt's first 256 characters (or 64 token ids),
before any template or tokenizer, together with its tools, which templates show first, and with its tenant, because no
tenant uses another's cache. Equal fingerprints
mean prompts that begin alike, for at least so long. How much longer they agree, and whether the engine still holds
those pages, it does not say.
"""

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final, Self

CHARACTERS: Final = 256
TOKENS: Final = 64
_REMEMBERED: Final = 16


def fingerprint(tenant_id: str, job_input: dict[str, Any], tools: Sequence[dict[str, Any]] = ()) -> int:
    """A signed number of 64 bits, equal for the tenant's prompts that begin alike."""
    if "token_ids" in job_input:
        beginning = json.dumps(job_input["token_ids"][:TOKENS])
    elif "prompt" in job_input:
        beginning = job_input["prompt"][:CHARACTERS]
    else:
        beginning = json.dumps([[each["role"], each["content"][:CHARACTERS]] for each in job_input["messages"][:8]])
    shown = "\0" + json.dumps(tools) if tools else ""
    told = f"{tenant_id}\0{beginning[:CHARACTERS]}{shown}".encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(told, digest_size=8).digest(), signed=True)


class RecentPrefixes:
    """The fingerprints of what was served last. One for each deployment of a worker; any thread may call."""

    def __init__(self, most: int = _REMEMBERED) -> None:
        self._most = most
        self._seen: OrderedDict[int, None] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def of(cls, newest_first: Sequence[int]) -> Self:
        """As if these had been noted."""
        recent = cls(max(_REMEMBERED, len(newest_first)))
        for prefix in reversed(newest_first):
            recent.note(prefix)
        return recent

    def note(self, prefix: int | None) -> None:
        """A job that begins so is served now."""
        if prefix is None:
            return
        with self._lock:
            self._seen[prefix] = None
            self._seen.move_to_end(prefix)
            if len(self._seen) > self._most:
                self._seen.popitem(last=False)

    def newest_first(self) -> list[int]:
        """The fingerprints, that of the job that was claimed last before all others."""
        with self._lock:
            return list(reversed(self._seen))
