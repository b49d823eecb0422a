"""What a client asks of the server that is about no single job: its models, and what happens in the tenant."""

from collections.abc import Iterator

from penstock.client.feed import FeedReader, feed
from penstock.client.models import FeedEvent, Model, ModelList, WebhookSecret, parse
from penstock.client.patience import OnLost, Patience
from penstock.client.reading import Asking


class House:
    """The server as the key's tenant sees it."""

    def __init__(self, transport: Asking, *, patience_seconds: float) -> None:
        self._transport = transport
        self._patience_seconds = patience_seconds

    def models(self) -> list[Model]:
        """The models that take jobs, and the version behind each."""
        return parse(ModelList, self._transport.request("GET", "/v1/models")).data

    def events(self, after: str | None = None, *, page_size: int | None = None) -> Iterator[FeedEvent]:
        """What happened in the tenant after that event's `id` (from the beginning without it), to the present end."""
        return self._transport.pages(feed(after, page_size))

    def follow_events(self, after: str | None = None, *, on_lost: OnLost = lambda _error: None) -> Iterator[FeedEvent]:
        """The same, and what comes, without an end. `after="now"` begins at the present end.

        A lost connection is made again just after the last event that was given out; `on_lost` is told of each. Raises
        `ConnectionFailed` when the server stays silent for the client's `patience`.
        """
        return self._transport.read(FeedReader(after), Patience(self._patience_seconds, on_lost))

    def webhook_secret(self) -> str:
        """The secret that signs webhooks to jobs' own addresses, for `verify_webhook`."""
        return parse(WebhookSecret, self._transport.request("GET", "/v1/webhook-secret")).secret
