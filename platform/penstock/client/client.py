"""The client: one server, one key."""

from types import TracebackType
from typing import Self

from penstock.client.config import connection
from penstock.client.jobs import Jobs
from penstock.client.models import Model, ModelList, WebhookSecret, parse
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

    def models(self) -> list[Model]:
        """The models that take jobs, and the version behind each."""
        return parse(ModelList, self._transport.request("GET", "/v1/models")).data

    def webhook_secret(self) -> str:
        """The secret that signs the tenant's webhooks, for `verify_webhook`."""
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
