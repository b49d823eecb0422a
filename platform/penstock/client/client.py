"""The client: one server, one key."""

from collections.abc import Iterator
from types import TracebackType
from typing import Self

from penstock.client.batches import Batches
from penstock.client.config import connection
from penstock.client.endpoints import Webhooks
from penstock.client.feed import FeedFollower, feed
from penstock.client.files import Files
from penstock.client.jobs import Jobs
from penstock.client.models import FeedEvent, Model, ModelList, WebhookSecret, parse
from penstock.client.patience import OnLost, Patience
from penstock.client.transport import Transport


class Client:
    """Talks to a Penstock server. Thread-safe; close it, or use it in a `with` block.

    `url` and `api_key` come from `PENSTOCK_URL` and `PENSTOCK_API_KEY` when not given. `timeout` bounds each request in
    seconds, `max_retries` how often one is repeated where that is safe, and `patience` how many seconds of silence a
    stream bridges by connecting again.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = 30.0,
        max_retries: int = 5,
        patience: float = 120.0,
    ) -> None:
        self._transport = Transport(connection(url, api_key), timeout=timeout, max_retries=max_retries)
        self.url = self._transport.url
        self.jobs = Jobs(self._transport, patience_seconds=patience)
        self.webhooks = Webhooks(self._transport)
        self.files = Files(self._transport)
        self.batches = Batches(self._transport, self.files, patience_seconds=patience)
        self._patience_seconds = patience

    def models(self) -> list[Model]:
        """The models that take jobs, and the version behind each."""
        return parse(ModelList, self._transport.request("GET", "/v1/models")).data

    def events(self, after: str | None = None, *, page_size: int | None = None) -> Iterator[FeedEvent]:
        """What happened in the tenant after that event's `id` (from the beginning without it), to the present end."""
        return feed(self._transport, after, page_size)

    def follow_events(self, after: str | None = None, *, on_lost: OnLost = lambda _error: None) -> Iterator[FeedEvent]:
        """The same, and what comes, without an end. `after="now"` begins at the present end.

        A lost connection is made again just after the last event that was given out; `on_lost` is told of each. Raises
        `ConnectionFailed` when the server stays silent for the client's `patience`.
        """
        return FeedFollower(self._transport, after, Patience(self._patience_seconds, on_lost)).events()

    def webhook_secret(self) -> str:
        """The secret that signs webhooks to jobs' own addresses, for `verify_webhook`."""
        return parse(WebhookSecret, self._transport.request("GET", "/v1/webhook-secret")).secret

    def close(self) -> None:
        """Close every connection."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
