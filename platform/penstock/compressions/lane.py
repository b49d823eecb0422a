"""The lane of jobs that need a model's files and no engine of it.

Every claim names a deployment, so the lane is one: a row that is always retired, which no worker hosts and no alias
names. Its jobs wait, take turns by tenant, are leased, fenced, reaped and handed back like all others, and neither
path can claim what is the other's.
"""

from typing import Final

from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from penstock.registry.models import LANE_ID, Deployment

KINDS: Final = frozenset({"quantize", "evaluate"})


def open_lane(session: Session) -> str:
    """The id of the lane, which is there afterwards."""
    row = {
        "id": LANE_ID,
        "model_name": "(files)",  # no model may have such a name
        "model_version": "0",
        "state": "retired",
        "source": "",
        "manifest": {},
        "recipe": {},
        "context_length": 1,
        "digest": "",
    }
    session.execute(upsert(Deployment).values(row).on_conflict_do_nothing(index_elements=[Deployment.id]))
    return LANE_ID


def holder(worker_id: str) -> str:
    """As whom a worker holds jobs of the lane: apart from those that take its slots."""
    return f"{worker_id}:files"
