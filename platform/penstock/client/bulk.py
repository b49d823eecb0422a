"""`client.bulk`: one act on many jobs, named by a filter or by their ids."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal
from urllib.parse import quote
from uuid import uuid4

from penstock.client.documents import Document, parse
from penstock.client.jobs import in_utc
from penstock.client.patience import Patience
from penstock.client.reading import Asking, Pages, Waiting
from penstock.client.transport import IDEMPOTENCY_HEADER

_PATH: Final = "/v1/bulk"
_PAUSE_SECONDS: Final = 0.5
_ENDED: Final = frozenset({"completed", "cancelled"})


class BulkFailure(Document):
    """Why one job, or dead letter, could not be had."""

    id: str
    code: str
    message: str


class BulkOperation(Document):
    """An operation at one moment; `failures`, the first hundred, come with `get` and `follow`."""

    id: str
    action: str
    status: str
    filter: dict[str, Any]
    total: int
    truncated: bool
    done: int
    skipped: int
    failed: int
    blocker: dict[str, str] | None
    created_at: datetime
    finished_at: datetime | None
    failures: Sequence[BulkFailure] = ()

    @property
    def finished(self) -> bool:
        """Whether it has ended for good."""
        return self.status in _ENDED

    @property
    def settled(self) -> int:
        """How many need nothing more."""
        return self.done + self.skipped + self.failed


class BulkPage(Document):
    """One page of a listing."""

    data: list[BulkOperation]
    has_more: bool
    next: str | None


class Bulk:
    """The bulk operations of the key's tenant."""

    def __init__(self, transport: Asking, *, patience_seconds: float) -> None:
        self._transport, self._patience_seconds = transport, patience_seconds

    def begin(
        self,
        action: Literal["cancel", "replay"],
        filters: Mapping[str, Any] | None = None,
        *,
        ids: Sequence[str] | None = None,
        idempotency_key: str | None = None,
    ) -> BulkOperation:
        """Begin to cancel, or to submit again, all jobs that match: those of `client.jobs.list` with these arguments.

        `cancel` is about those that wait or run, `replay` about those that did not succeed, or whose `status` is named.
        Or, instead of filters, the jobs of these `ids`, at most 1,000, whatever became of them.
        Raises `ValidationFailed` and `TooManyBulkOperations`.
        """
        headers = {IDEMPOTENCY_HEADER: idempotency_key or str(uuid4())}
        named: dict[str, Any] = {} if filters is None else {"filter": filter_document(filters)}
        body = {"action": action} | named | ({} if ids is None else {"ids": list(ids)})
        return parse(BulkOperation, self._transport.request("POST", _PATH, body=body, headers=headers))

    def get(self, bulk_id: str) -> BulkOperation:
        """The operation as it stands, with its failures. Raises `NotFound`."""
        return parse(BulkOperation, self._transport.request("GET", _path(bulk_id)))

    def list(self, *, page_size: int | None = None) -> Iterator[BulkOperation]:
        """All operations, newest first; each page is fetched when the iterator gets there."""
        return self._transport.pages(Pages(BulkPage, _PATH, {"limit": page_size}))

    def cancel(self, bulk_id: str) -> BulkOperation:
        """Do no more of it; what was done stays. Raises `BulkOperationFinished`."""
        return parse(BulkOperation, self._transport.request("POST", f"{_path(bulk_id)}/cancel"))

    def follow(self, bulk_id: str) -> Iterator[BulkOperation]:
        """The operation as it stands, twice a second until it has ended. Outages are borne for `patience`."""
        return self._transport.follow(_BulkWait(bulk_id), Patience(self._patience_seconds))


class _BulkWait(Waiting[BulkOperation]):
    """Looks at an operation twice a second."""

    def __init__(self, bulk_id: str) -> None:
        self.path = _path(bulk_id)

    def take(self, answer: Mapping[str, Any], /) -> tuple[BulkOperation, float | None]:
        operation = parse(BulkOperation, answer)
        return operation, None if operation.finished else _PAUSE_SECONDS


def filter_document(filters: Mapping[str, Any]) -> dict[str, Any]:
    """Filters of jobs, named as arguments are, as the API names and writes them; what is None is left out."""
    return {
        {"job_class": "class"}.get(name, name): _written(value) for name, value in filters.items() if value is not None
    }


def _written(value: Any) -> Any:
    if isinstance(value, datetime):
        return in_utc(value)
    return value if isinstance(value, str) else ",".join(value)


def _path(bulk_id: str) -> str:
    return f"{_PATH}/{quote(bulk_id, safe='')}"
