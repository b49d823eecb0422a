"""`client.webhooks`: the endpoints that get events of all the tenant's jobs, and the log of what was sent."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Final, Literal
from urllib.parse import quote

from pydantic import Field

from penstock.client.documents import Document, parse
from penstock.client.jobs import given, in_utc
from penstock.client.reading import Asking, Pages

_ENDPOINTS: Final = "/v1/webhook-endpoints"
_DELIVERIES: Final = "/v1/webhook-deliveries"


class WebhookEndpoint(Document):
    """An address that gets events of all jobs. `secret` is there when it was just made, and None ever after."""

    id: str
    url: str
    description: str
    events: list[str]
    previous_secret_until: datetime | None
    failures: int
    failing_since: datetime | None
    disabled_at: datetime | None
    disabled_reason: str | None
    created_at: datetime
    secret: str | None = None


class WebhookEndpointList(Document):
    """All of them."""

    data: list[WebhookEndpoint]


class WebhookAttempt(Document):
    """One HTTP try of a delivery: a `status_code`, or an `error`."""

    number: int
    started_at: datetime
    milliseconds: int
    status_code: int | None
    response_body: str | None
    error: str | None


class WebhookDelivery(Document):
    """One event on its way to one address; `payload` and `attempt_history` come with `webhooks.delivery`."""

    id: str
    endpoint_id: str | None
    job_id: str | None
    event_number: int | None
    type: str
    url: str
    status: Literal["waiting", "delivered", "failed"]
    attempts: int
    next_attempt_at: datetime | None
    created_at: datetime
    delivered_at: datetime | None
    payload: dict[str, Any] | None = None
    attempt_history: list[WebhookAttempt] = Field(default_factory=list)


class WebhookDeliveryPage(Document):
    """One page of the log."""

    data: list[WebhookDelivery]
    has_more: bool
    next: str | None


class WebhookReplay(Document):
    """How many deliveries a replay has set going."""

    replayed: int


class Webhooks:
    """The webhook endpoints of the key's tenant. To make, change and delete them takes the scope `admin`."""

    def __init__(self, transport: Asking) -> None:
        self._transport = transport

    def create(
        self, url: str, *, description: str | None = None, events: Sequence[str] | None = None
    ) -> WebhookEndpoint:
        """A new endpoint, with its `secret`, which is shown this once. Without `events` it gets those of final states.

        Raises `ValidationFailed`, `AddressRefused` for an address that webhooks may not go to, and
        `TooManyWebhookEndpoints`.
        """
        body = given(url=url, description=description, events=_listed(events))
        return self._endpoint("POST", _ENDPOINTS, body)

    def list(self) -> Sequence[WebhookEndpoint]:
        """All endpoints, newest first."""
        return parse(WebhookEndpointList, self._transport.request("GET", _ENDPOINTS)).data

    def get(self, endpoint_id: str) -> WebhookEndpoint:
        """The endpoint and how it stands. Raises `NotFound`."""
        return self._endpoint("GET", _path(_ENDPOINTS, endpoint_id))

    def change(
        self,
        endpoint_id: str,
        *,
        url: str | None = None,
        description: str | None = None,
        events: Sequence[str] | None = None,
        disabled: bool | None = None,
    ) -> WebhookEndpoint:
        """Change what is given. `disabled=False` enables it again."""
        body = given(url=url, description=description, events=_listed(events), disabled=disabled)
        return self._endpoint("PATCH", _path(_ENDPOINTS, endpoint_id), body)

    def delete(self, endpoint_id: str) -> None:
        """Delete it with the log of its deliveries."""
        self._transport.request("DELETE", _path(_ENDPOINTS, endpoint_id))

    def rotate_secret(self, endpoint_id: str, *, grace_seconds: int | None = None) -> WebhookEndpoint:
        """Give it a fresh `secret`; for the grace (a day) the old one signs as well."""
        body = given(grace_seconds=grace_seconds)
        return self._endpoint("POST", f"{_path(_ENDPOINTS, endpoint_id)}/rotate-secret", body)

    def test(self, endpoint_id: str) -> WebhookDelivery:
        """Send it a test event, once; `delivery` tells what came of it."""
        return self._delivery("POST", f"{_path(_ENDPOINTS, endpoint_id)}/test")

    def deliveries(
        self,
        *,
        endpoint_id: str | None = None,
        job_id: str | None = None,
        status: Literal["waiting", "delivered", "failed"] | None = None,
        page_size: int | None = None,
    ) -> Iterator[WebhookDelivery]:
        """All deliveries that match, newest first; each page is fetched when the iterator gets there."""
        query: dict[str, Any] = {"endpoint": endpoint_id, "job": job_id, "status": status, "limit": page_size}
        return self._transport.pages(Pages(WebhookDeliveryPage, _DELIVERIES, query))

    def delivery(self, delivery_id: str) -> WebhookDelivery:
        """The delivery with its payload and every attempt. Raises `NotFound`."""
        return self._delivery("GET", _path(_DELIVERIES, delivery_id))

    def replay(self, delivery_id: str) -> WebhookDelivery:
        """Send a delivery that has ended again. Raises `WebhookDeliveryWaiting` and `WebhookEndpointDisabled`."""
        return self._delivery("POST", f"{_path(_DELIVERIES, delivery_id)}/replay")

    def replay_since(
        self, endpoint_id: str, since: datetime, *, until: datetime | None = None, delivered: bool = False
    ) -> int:
        """Send all again that failed in the time, with `delivered` also what arrived; returns how many."""
        body = given(since=in_utc(since), until=in_utc(until), delivered=delivered)
        answer = self._transport.request("POST", f"{_path(_ENDPOINTS, endpoint_id)}/replay", body=body)
        return parse(WebhookReplay, answer).replayed

    def _endpoint(self, method: str, path: str, body: dict[str, Any] | None = None) -> WebhookEndpoint:
        return parse(WebhookEndpoint, self._transport.request(method, path, body=body))

    def _delivery(self, method: str, path: str) -> WebhookDelivery:
        return parse(WebhookDelivery, self._transport.request(method, path))


def _path(collection: str, name: str) -> str:
    return f"{collection}/{quote(name, safe='')}"


def _listed(events: Sequence[str] | None) -> Sequence[str] | None:
    return None if events is None else [*events]
