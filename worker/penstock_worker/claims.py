"""Claims of the threads that look for a job of one deployment at the same time, made in one transaction."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from penstock.db import Database
from penstock.fairness.prefixes import RecentPrefixes
from penstock.jobs import lease
from penstock.jobs.lease import Claim

from penstock_worker.together import GroupFailed, Together


class Claimed(NamedTuple):
    """A claim, and when its transaction began, on this process's monotonic clock: its lease is never older."""

    claim: Claim
    begun: float


class Claims:
    """What one worker claims of one deployment. Any thread may call; each gets a job of its own.

    `shadow_room` says how many of what is claimed next may be shadow jobs; None is any number.
    """

    def __init__(
        self,
        database: Database,
        *,
        worker_id: str,
        deployment_id: str,
        lease_seconds: float,
        shadow_room: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._database = database
        self._worker_id = worker_id
        self._deployment_id = deployment_id
        self._lease_seconds = lease_seconds
        self._shadow_room = shadow_room
        self._recent = RecentPrefixes()
        self._looks: Together[None, Claimed | None] = Together(self._claim_all)

    def next(self) -> Claimed | None:
        """The next waiting job; None when none is left. Raises what PostgreSQL's client raises when it is away."""
        try:
            return self._looks.ask(None)
        except GroupFailed as failed:
            raise failed.__cause__ or failed from None

    def _claim_all(self, looks: Sequence[None]) -> list[Claimed | None]:
        with self._database.transaction() as session:
            session.connection()  # however long that takes: the leases and the runs begin after it
            begun = time.monotonic()
            claims = lease.claim_all(
                session,
                worker_id=self._worker_id,
                deployment_id=self._deployment_id,
                lease_seconds=self._lease_seconds,
                most=len(looks),
                recent_prefixes=self._recent.newest_first(),
                most_shadow=self._shadow_room(),
            )
        for claim in claims:
            self._recent.note(claim.job.prefix)
        return [*(Claimed(claim, begun) for claim in claims), *[None] * (len(looks) - len(claims))]
