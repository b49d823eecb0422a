"""The client: one server, one key."""

from types import TracebackType
from typing import Self

from penstock.client.batches import Batches
from penstock.client.bulk import Bulk
from penstock.client.config import connection
from penstock.client.endpoints import Webhooks
from penstock.client.files import Files
from penstock.client.house import House
from penstock.client.jobs import Jobs
from penstock.client.keys import Keys
from penstock.client.operation import Operation
from penstock.client.replays import Replays
from penstock.client.rollouts import Rollouts
from penstock.client.transport import Transport


class Client(House):
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
        transport = Transport(connection(url, api_key), timeout=timeout, max_retries=max_retries)
        super().__init__(transport, patience_seconds=patience)
        self.url, self._close = transport.url, transport.close
        self.jobs = Jobs(transport, patience_seconds=patience)
        self.webhooks = Webhooks(transport)
        self.keys = Keys(transport)
        self.files = Files(transport)
        self.batches = Batches(transport, self.files, patience_seconds=patience)
        self.bulk = Bulk(transport, patience_seconds=patience)
        self.operation = Operation(transport)
        self.rollouts = Rollouts(transport, patience_seconds=patience)
        self.replays = Replays(transport, patience_seconds=patience)

    def close(self) -> None:
        """Close every connection."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
