"""What a worker is connected to, by connections that its parts share."""

from typing import Final

from penstock.broker import make_celery, make_redis
from penstock.db import Database
from penstock.settings import Settings

_PARTS: Final = 4
"""That use PostgreSQL beside the jobs' threads: heartbeat, hosting, housekeeping and consumption, none of which waits
for another's connection."""


class Connections:
    """Redis, Celery, and PostgreSQL twice: the parts' `own_database` is there when jobs hold all of `database`."""

    def __init__(self, settings: Settings) -> None:
        self.redis = make_redis(settings)
        self.celery = make_celery(settings)
        self.database = Database(settings)
        self.own_database = Database(settings, pool_size=_PARTS + settings.compressions)

    def close(self) -> None:
        self.celery.close()
        self.redis.close()
        self.database.close()
        self.own_database.close()
