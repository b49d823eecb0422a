"""How bulk operations look from outside."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from penstock.bulk.models import BulkItem, BulkOperation
from penstock.bulk.states import BulkAction, BulkState
from penstock.clock import iso


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid")


class BulkBlocker(_Document):
    """Why an operation waits just now; it goes on by itself."""

    code: str
    message: str


class BulkDocument(_Document):
    """An operation and how far it is. What of `total` is neither done, skipped nor failed is still to come."""

    id: str
    object: Literal["bulk_operation"]
    action: BulkAction
    status: BulkState
    filter: dict[str, Any] = Field(
        description="What it is about, its states said outright; empty where ids named the jobs"
    )
    total: int = Field(description="How many it is about; rises while it is gathering")
    truncated: bool = Field(description="Whether more matched than one operation takes")
    done: int
    skipped: int = Field(description="Those that needed nothing, because they had ended or gone meanwhile")
    failed: int
    blocker: BulkBlocker | None
    created_at: datetime
    finished_at: datetime | None


class BulkFailure(_Document):
    """Why one of them could not be had."""

    id: str = Field(description="The job's, or the dead letter's")
    code: str
    message: str


class BulkDetail(BulkDocument):
    """An operation with what went wrong."""

    failures: list[BulkFailure] = Field(description="The first hundred, by id")


class BulkPage(_Document):
    """A page of operations, newest first."""

    object: Literal["list"]
    data: list[BulkDocument]
    has_more: bool
    next: str | None = Field(description="Give it as `after` to get the next page")


def bulk_document(operation: BulkOperation) -> dict[str, Any]:
    """As `BulkDocument`."""
    return {
        "id": operation.id,
        "object": "bulk_operation",
        "action": operation.action,
        "status": operation.state,
        "filter": operation.filter,
        "total": operation.total,
        "truncated": operation.truncated,
        "done": operation.done,
        "skipped": operation.skipped,
        "failed": operation.failed,
        "blocker": operation.blocker,
        "created_at": iso(operation.created_at),
        "finished_at": iso(operation.finished_at),
    }


def bulk_detail(operation: BulkOperation, failed: Sequence[BulkItem]) -> dict[str, Any]:
    """As `BulkDetail`."""
    failures = [{"id": item.target_id, **(item.error or {})} for item in failed]
    return bulk_document(operation) | {"failures": failures}
