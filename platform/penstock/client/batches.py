"""`client.batches`: files of requests, run as there is room for them."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import quote
from uuid import uuid4

from penstock.client.documents import Document, parse
from penstock.client.errors import WaitTimedOut
from penstock.client.files import Files
from penstock.client.jobs import given, in_utc
from penstock.client.patience import Patience
from penstock.client.reading import Asking, Pages, Waiting
from penstock.client.transport import IDEMPOTENCY_HEADER
from penstock.errors import ValidationFailed

_PATH: Final = "/v1/batches"
_PAUSE_SECONDS: Final = 1.0
_ENDED: Final = frozenset({"completed", "failed", "expired", "cancelled"})


class BatchLines(Document):
    """A batch's lines by where they stand, exactly. Those that are `unsubmitted` have no job yet."""

    total: int
    unsubmitted: int
    waiting: int
    running: int
    succeeded: int
    failed: int
    cancelled: int
    expired: int
    invalid: int

    @property
    def done(self) -> int:
        """How many have ended, however they did."""
        return self.total - self.unsubmitted - self.waiting - self.running


class Batch(Document):
    """A batch. Moments are Unix seconds; `eta` is when it is through at `lines_per_minute`, as measured."""

    id: str
    status: str
    endpoint: str
    input_file_id: str
    output_file_id: str | None
    error_file_id: str | None
    errors: dict[str, Any] | None
    created_at: int
    expires_at: int
    priority: int
    retry_of: str | None
    metadata: dict[str, str]
    blocker: dict[str, str] | None
    lines: BatchLines
    lines_per_minute: float | None
    eta: datetime | None

    @property
    def finished(self) -> bool:
        """Whether it has ended for good."""
        return self.status in _ENDED


class BatchResult(Document):
    """What came of one line: the `response` that its endpoint would have given, or the `error` why there is none."""

    id: str
    custom_id: str | None
    line: int
    status: str
    response: dict[str, Any] | None
    error: dict[str, Any] | None


class _BatchPage(Document):
    data: list[Batch]
    has_more: bool
    last_id: str | None

    @property
    def next(self) -> str | None:
        """Where the next page begins."""
        return self.last_id


class _ResultPage(Document):
    data: list[BatchResult]
    has_more: bool
    next: int


class Batches:
    """The batches of the key's tenant."""

    def __init__(self, transport: Asking, files: Files, *, patience_seconds: float) -> None:
        self._transport, self._files, self._patience_seconds = transport, files, patience_seconds

    def submit(self, path: str | Path, /, **options: Any) -> Batch:
        """Upload a file of requests and make a batch of it, for the endpoint that its first line names.

        The options are those of `create`. Raises `ValidationFailed` when the first line names none.
        """
        endpoint = options.pop("endpoint", None) or _endpoint_of(Path(path))
        return self.create(self._files.upload(path).id, endpoint=endpoint, **options)

    def create(
        self,
        input_file_id: str,
        *,
        endpoint: str,
        completion_window: str = "24h",
        deadline: datetime | None = None,
        priority: int | None = None,
        invalid_lines: Literal["refuse", "skip"] | None = None,
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> Batch:
        """A batch over an uploaded file. With `invalid_lines="skip"` wrong lines do not fail it as a whole.

        Raises `NotFound` and `ValidationFailed`; what is wrong with its lines is told by the batch.
        """
        body = given(
            input_file_id=input_file_id,
            endpoint=endpoint,
            completion_window=completion_window,
            deadline=in_utc(deadline),
            priority=priority,
            invalid_lines=invalid_lines,
            metadata=dict(metadata) if metadata is not None else None,
        )
        return self._batch("POST", _PATH, body, _keyed(idempotency_key))

    def get(self, batch_id: str) -> Batch:
        """The batch as it stands. Raises `NotFound`."""
        return self._batch("GET", _path(batch_id))

    def list(self, *, page_size: int | None = None) -> Iterator[Batch]:
        """All batches, newest first; each page is fetched when the iterator gets there."""
        return self._transport.pages(Pages(_BatchPage, _PATH, {"limit": page_size}))

    def results(self, batch_id: str, *, after: int = 0) -> Iterator[BatchResult]:
        """What came of the lines that have finished so far, in the order in which they did, behind the first `after`.

        How many were read is where to go on later.
        """
        return self._transport.pages(Pages(_ResultPage, f"{_path(batch_id)}/results", {"after": after}))

    def change(self, batch_id: str, *, priority: int) -> Batch:
        """Give it another priority, which its waiting jobs take at once. Raises `BatchFinished`."""
        return self._batch("PATCH", _path(batch_id), {"priority": priority})

    def pause(self, batch_id: str) -> Batch:
        """Begin no more of its lines; what runs goes on. Raises `BatchFinished`."""
        return self._batch("POST", f"{_path(batch_id)}/pause")

    def resume(self, batch_id: str) -> Batch:
        """Go on with it. Raises `BatchFinished`."""
        return self._batch("POST", f"{_path(batch_id)}/resume")

    def cancel(self, batch_id: str) -> Batch:
        """Stop it; what has finished is kept. Raises `BatchFinished`."""
        return self._batch("POST", f"{_path(batch_id)}/cancel")

    def retry(
        self, batch_id: str, *, custom_ids: Sequence[str] | None = None, idempotency_key: str | None = None
    ) -> Batch:
        """A new batch of the lines that failed, expired or were cancelled, or of those among them that are named.

        Raises `NothingToRetry`.
        """
        body = given(custom_ids=list(custom_ids) if custom_ids is not None else None)
        return self._batch("POST", f"{_path(batch_id)}/retry", body, _keyed(idempotency_key))

    def wait(self, batch_id: str, timeout: float | None = None) -> Batch:
        """The batch once it has ended, however it did. Raises `WaitTimedOut` after `timeout` seconds; it goes on."""
        return self._transport.poll(_BatchWait(batch_id, timeout), Patience(self._patience_seconds))

    def follow(self, batch_id: str) -> Iterator[Batch]:
        """The batch as it stands, every second until it has ended. Outages are borne for the client's `patience`."""
        return self._transport.follow(_BatchWait(batch_id, None), Patience(self._patience_seconds))

    def _batch(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Batch:
        return parse(Batch, self._transport.request(method, path, body=body, headers=headers))


class _BatchWait(Waiting[Batch]):
    """Looks at a batch every second."""

    def __init__(self, batch_id: str, timeout: float | None) -> None:
        self.path, self._timeout = _path(batch_id), timeout
        self._deadline = time.monotonic() + timeout if timeout is not None else float("inf")

    def take(self, answer: Mapping[str, Any], /) -> tuple[Batch, float | None]:
        batch = parse(Batch, answer)
        if batch.finished:
            return batch, None
        if time.monotonic() + _PAUSE_SECONDS > self._deadline:
            late = f"{batch.id} is {batch.status} after {self._timeout:g} seconds; it goes on"
            raise WaitTimedOut(late, batch=batch)
        return batch, _PAUSE_SECONDS


def _endpoint_of(path: Path) -> str:
    with path.open("rb") as lines:
        first = next((line for line in lines if line.strip()), b"")
    try:
        endpoint = json.loads(first)["url"]
    except (ValueError, KeyError, TypeError):
        endpoint = None
    if not isinstance(endpoint, str):
        raise ValidationFailed(f"the first line of {path} names no url; give the endpoint", field="url")
    return endpoint


def _keyed(key: str | None) -> dict[str, str]:
    return {IDEMPOTENCY_HEADER: key or str(uuid4())}


def _path(batch_id: str) -> str:
    return f"{_PATH}/{quote(batch_id, safe='')}"
