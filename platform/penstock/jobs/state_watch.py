"""The states of jobs that somebody reads, looked at for all readers of a process at once."""

from collections.abc import Collection
from typing import Final

from sqlalchemy import select

from penstock.db import Database
from penstock.jobs.models import Job

POLL_SECONDS: Final = 2.0
"""How often a process looks, so that a publication that was lost hangs no reader for longer."""


class StateWatch:
    """Finds state events that no publication told of. One thread's own."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._last_events: dict[str, int] = {}

    def look(self, job_ids: Collection[str]) -> list[str]:
        """Those of `job_ids` that had state events since the last look, or were not in it. Raises SQLAlchemyError."""
        with self._database.transaction() as session:
            rows = session.execute(select(Job.id, Job.last_event).where(Job.id.in_(job_ids)))
            found: dict[str, int] = dict(row for row in rows)
        before, self._last_events = self._last_events, found
        return [job_id for job_id, last_event in found.items() if before.get(job_id) != last_event]
