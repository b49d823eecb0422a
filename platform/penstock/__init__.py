"""Penstock: asynchronous, queue-based LLM generation jobs on your own GPUs.

The bare install is the Python client (`from penstock import Client`); the rooms behind it need the extras
`[platform]` and `[worker]`, and are imported by their own names.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from penstock.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Late, so that a server process that needs no client does not load one.
    if name in ("AsyncClient", "Client"):
        from penstock import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
