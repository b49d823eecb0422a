"""What a client asks that is about models' files: smaller versions, comparisons, and text to calibrate by."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, NotRequired, TypedDict

from penstock.client.documents import Document, parse
from penstock.client.inputs import Webhook
from penstock.client.job_documents import Job
from penstock.client.jobs import given, idempotency, in_utc
from penstock.client.reading import Asking

# `from` is a keyword, so it is spelled as a call.
Texts = TypedDict(
    "Texts",
    {
        "from": Literal["jobs", "file"],
        "count": NotRequired[int],
        "all_tenants": NotRequired[bool],
        "file_id": NotRequired[str],
    },
)
"""Text to work by: the newest succeeded jobs of the model, `count` of them, or a file of JSON lines."""


class Recipe(TypedDict, total=False):
    """How a model is compressed; what is left out is the server's default."""

    scheme: str
    method: str
    group: int
    searched: bool
    damping: float
    act_order: bool
    samples: int
    length: int
    seed: int


class CalibrationTexts(Document):
    """Text of jobs, to calibrate by."""

    data: list[dict[str, Any]]


class ModelWork:
    """Calls that need a key with the scope `admin`, but for `calibration`."""

    _transport: Asking

    def quantize(
        self,
        *,
        model: str,
        recipe: Recipe | Mapping[str, Any],
        calibration: Texts | Mapping[str, Any] | None = None,
        evaluate: bool | Mapping[str, Any] | None = None,
        name: str | None = None,
        alias: Literal["challenger"] | None = None,
        priority: int | None = None,
        deadline: datetime | None = None,
        webhook: str | Webhook | None = None,
        tags: Sequence[str] | None = None,
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Queue a job that makes a smaller version of `model` and registers it as a version of `name`, or of the same.

        It is compared with what it was made of unless `evaluate` is False. Raises `ModelNotFound`, `ValidationFailed`,
        `Forbidden`, `QuotaExceeded` and what every call may raise.
        """
        body = {
            "kind": "quantize",
            "model": model,
            "recipe": dict(recipe),
            "calibration": calibration,
            "evaluate": evaluate,
            "name": name,
            "alias": alias,
        }
        return self._work(body, priority, deadline, webhook, tags, metadata, idempotency_key)

    def evaluate(
        self,
        *,
        model: str,
        against: str,
        data: Texts | Mapping[str, Any] | None = None,
        priority: int | None = None,
        deadline: datetime | None = None,
        webhook: str | Webhook | None = None,
        tags: Sequence[str] | None = None,
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Queue a job that compares two versions by what both make of the same text. Raises as `quantize` does."""
        body = {"kind": "evaluate", "model": model, "against": against, "data": data}
        return self._work(body, priority, deadline, webhook, tags, metadata, idempotency_key)

    def calibration(
        self, model: str, *, count: int | None = None, all_tenants: bool | None = None
    ) -> list[dict[str, Any]]:
        """The text of the model's newest succeeded jobs: an object with `messages` or `text` for each.

        `all_tenants` takes those of every tenant; it needs the scope `operator`.
        """
        query = given(model=model, count=count, all_tenants=None if all_tenants is None else str(all_tenants).lower())
        return parse(CalibrationTexts, self._transport.request("GET", "/v1/calibration", query=query)).data

    def _work(
        self,
        body: Mapping[str, Any],
        priority: int | None,
        deadline: datetime | None,
        webhook: str | Webhook | None,
        tags: Sequence[str] | None,
        metadata: Mapping[str, str] | None,
        idempotency_key: str | None,
    ) -> Job:
        asked = given(
            **body,
            priority=priority,
            deadline=in_utc(deadline),
            webhook={"url": webhook} if isinstance(webhook, str) else webhook,
            tags=list(tags) if tags is not None else None,
            metadata=dict(metadata) if metadata is not None else None,
        )
        headers = idempotency(idempotency_key)
        return parse(Job, self._transport.request("POST", "/v1/jobs", body=asked, headers=headers))
