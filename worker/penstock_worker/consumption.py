"""Whether this worker still takes jobs: one that has room, hosts what waits, and yet claims nothing, is stalled.

A Celery consumer can lose its subscription while its connection and all else look alive. Then doorbells lie in the
queue and nobody here answers them; the only cure that always works is a new process.
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from penstock.db import Database
from penstock.fairness.claimable import claimable
from penstock.jobs.models import Job
from penstock.jobs.states import JobClass
from penstock.logs import get_logger
from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import func, select

from penstock_worker.patience import DATABASE_OUTAGE

_LOOKS_PER_STALL: Final = 8
_LONGEST_WAIT_SECONDS: Final = 5.0
_LOOKS_IN_A_ROW: Final = 3
"""That must find a stall: one may fall between a place that has come free after a long job and the next claim."""

log = get_logger(__name__)


class ConsumptionWatch:
    """Notes claims, and looks now and then whether they have stalled.

    `open_deployments` are those that are ready here and have a free place. `on_stall` is called once, with how many
    seconds nothing was claimed.
    """

    def __init__(
        self,
        database: Database,
        redis: Redis,
        open_deployments: Callable[[], Sequence[str]],
        on_stall: Callable[[float], None],
        *,
        stall_seconds: float,
    ) -> None:
        self._database = database
        self._redis = redis
        self._open_deployments = open_deployments
        self._on_stall = on_stall
        self._stall_seconds = stall_seconds
        self._alive_at = time.monotonic()
        self._found = 0

    def note_claim(self) -> None:
        """A job was claimed, or somebody looked for one and none was there."""
        self._alive_at = time.monotonic()

    def run(self, stop: threading.Event) -> None:
        """Look until `stop` is set or claims have stalled."""
        while not stop.wait(min(self._stall_seconds / _LOOKS_PER_STALL, _LONGEST_WAIT_SECONDS)):
            if self.look():
                return

    def look(self) -> bool:
        """Whether this is the last of three looks in a row that found a stall; then `on_stall` has been called."""
        idle = time.monotonic() - self._alive_at
        self._found = self._found + 1 if idle >= self._stall_seconds and self._is_stalled() else 0
        if self._found < _LOOKS_IN_A_ROW:
            return False
        log.error("consumption.stalled", seconds=round(idle, 1))
        self._on_stall(idle)
        return True

    def _is_stalled(self) -> bool:
        """Jobs have waited here for long, and what brings doorbells answers: so it is this process that is deaf."""
        deployments = self._open_deployments()
        if not deployments:
            return False
        try:
            self._redis.ping()
            return self._some_wait(deployments)
        except (RedisError, *DATABASE_OUTAGE) as error:
            log.warning("consumption.unknown", error=type(error).__name__)
            self._alive_at = time.monotonic()  # after an outage the doorbells take their time
            return False

    def _some_wait(self, deployments: Sequence[str]) -> bool:
        long = func.make_interval(0, 0, 0, 0, 0, 0, self._stall_seconds)
        waiting = select(Job.id).where(
            Job.deployment_id.in_(deployments),
            claimable(),
            Job.job_class < JobClass.SHADOW.value,  # which wait for as long as there is other work
            Job.queued_at < func.clock_timestamp() - long,
        )
        with self._database.transaction() as session:
            return session.scalar(waiting.limit(1)) is not None
