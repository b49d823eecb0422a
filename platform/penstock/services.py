"""What one web process has to answer requests with, made once by `penstock.app.create_app`."""

from dataclasses import dataclass
from typing import cast

from flask import current_app
from redis import Redis

from penstock.auth.key_ring import KeyRing
from penstock.db import Database
from penstock.events.live import FeedBroadcaster
from penstock.files.storage import FileStorage
from penstock.jobs.journal import Journal
from penstock.jobs.live import LiveBroadcaster
from penstock.jobs.services import PromptCounter
from penstock.metrics import Metrics
from penstock.places import Places
from penstock.quotas.gate import QuotaGate
from penstock.routing.recent import RecentRoutes
from penstock.settings import Settings
from penstock.tracing import Tracing


@dataclass(frozen=True, slots=True)
class Services:
    """The doors of a web process.

    `waiting_places` bounds the requests that hold a thread: streams and `Prefer: wait`; `rehearsals` those that
    compute for seconds.
    """

    settings: Settings
    database: Database
    redis: Redis
    journal: Journal
    live: LiveBroadcaster
    feed: FeedBroadcaster
    keys: KeyRing
    prompts: PromptCounter
    routes: RecentRoutes
    metrics: Metrics
    waiting_places: Places
    quotas: QuotaGate
    tracing: Tracing
    storage: FileStorage
    rehearsals: Places

    def stop_streams(self) -> None:
        """End every stream and wait, for shutdown; later ones end at once."""
        self.live.close()
        self.feed.close()

    def close(self) -> None:
        """Let go of everything."""
        self.stop_streams()
        self.quotas.close()
        self.tracing.close()
        self.redis.close()
        self.database.close()


def current_services() -> Services:
    """The services of the application that handles this request."""
    return cast(Services, current_app.extensions["penstock"])
