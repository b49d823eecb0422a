"""What a client asks of the server that is about no single job: its models, and what happens in the tenant."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from penstock.client.documents import Document, parse
from penstock.client.feed import FeedEvent, FeedReader, feed
from penstock.client.jobs import in_utc
from penstock.client.model_work import ModelWork
from penstock.client.patience import OnLost, Patience
from penstock.client.reading import Asking, Pages
from penstock.client.usage import BudgetList, Quotas, TenantBudget, UsagePage, UsageRow


class Model(Document):
    """A model that takes jobs. `ready` says whether a worker would take one now, `state` the same in words."""

    id: str
    version: str
    champion_since: datetime
    challenger_version: str | None
    context_length: int
    recipe: dict[str, Any]
    ready: bool
    state: str

    @property
    def name(self) -> str:
        """What jobs ask for."""
        return self.id


class ModelList(Document):
    """All models."""

    data: list[Model]


class WebhookSecret(Document):
    """What signs a tenant's webhooks."""

    secret: str


class House(ModelWork):
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

    def usage(
        self,
        by: Sequence[str] | None = None,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        model: str | None = None,
        tag: str | None = None,
        page_size: int | None = None,
    ) -> Iterator[UsageRow]:
        """What the tenant's finished jobs used and cost, told apart `by` day, model, version, key or tag.

        Without `by` it is by day and model. Jobs that ended from `since` on, and before `until`.
        """
        query: dict[str, Any] = {
            "by": ",".join(by) if by is not None else None,
            "since": in_utc(since),
            "until": in_utc(until),
            "model": model,
            "tag": tag,
            "limit": page_size,
        }
        return self._transport.pages(Pages(UsagePage, "/v1/usage", query))

    def budgets(self) -> list[TenantBudget]:
        """What the tenant may spend, by currency."""
        return parse(BudgetList, self._transport.request("GET", "/v1/budgets")).data

    def quotas(self) -> Quotas:
        """The limits in force for the tenant, and what is left of them."""
        return parse(Quotas, self._transport.request("GET", "/v1/quotas"))

    def webhook_secret(self) -> str:
        """The secret that signs webhooks to jobs' own addresses, for `verify_webhook`."""
        return parse(WebhookSecret, self._transport.request("GET", "/v1/webhook-secret")).secret
