"""What jobs may ask for, as documents: the models, which version serves each, and whether a worker is ready for it."""

from typing import Any

from sqlalchemy.orm import Session

from penstock.clock import iso
from penstock.registry import catalogue
from penstock.registry.catalogue import ModelStanding, VersionStanding


def list_models(session: Session) -> list[dict[str, Any]]:
    """A document for every model that takes jobs, by name."""
    return [
        _document(standing, standing.champion)
        for standing in catalogue.list_models(session)
        if standing.champion is not None
    ]


def _document(model: ModelStanding, champion: VersionStanding) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": int(champion.created_at.timestamp()),
        "owned_by": "penstock",
        "version": champion.version,
        "champion_since": iso(model.champion_since),
        "challenger_version": model.challenger.version if model.challenger else None,
        "context_length": champion.context_length,
        "recipe": champion.recipe,
        "ready": champion.ready,
        "state": champion.state,
        "incoming": {"version": model.incoming.version, "state": model.incoming.state} if model.incoming else None,
        "reason": model.reason,
    }
