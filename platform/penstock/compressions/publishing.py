"""One thread in every control process: takes what workers have made to MLflow, and writes down what came of it.

Workers know of MLflow no more than what our tables say, so they need no key of it. The row is the truth: what was made
and is not published is looked for every second. A row that is being published is locked; a process that dies lets it
go, and the next finds what was done there by the job's run and the version's files.
"""

import json
import subprocess
import sys
import threading
from typing import Any, Final

from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from penstock.compressions.models import Compression
from penstock.compressions.publication import Publication
from penstock.compressions.versions import FiledVersion
from penstock.db import Database
from penstock.jobs.models import Job
from penstock.jobs.states import JobState
from penstock.logs import get_logger
from penstock.settings import Settings

_PAUSE_SECONDS: Final = 1.0
_AFTER_FAILURE_SECONDS: Final = 5.0
_MOST_SECONDS: Final = 600  # hashing a large model takes minutes
log = get_logger(__name__)


class Publisher:
    """Publishes one result at a time. Several may run side by side."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database, self._settings = database, settings

    def run(self, stop: threading.Event) -> None:
        """Publish until `stop` is set; outages of PostgreSQL and MLflow are waited out."""
        pause = 0.0
        while not stop.wait(pause):
            try:
                pause = _PAUSE_SECONDS if self.publish_next() is None else 0.0
            except (DBAPIError, PoolTimeout, OSError, subprocess.TimeoutExpired, _NotNow) as error:
                log.warning("compression.not_published", reason=str(error).split("\n")[0])
                pause = _AFTER_FAILURE_SECONDS

    def publish_next(self) -> str | None:
        """Publish what has waited longest; its job's id, or None where nothing waits. Raises where MLflow is away."""
        with self._database.transaction() as session:
            session.execute(text(f"SET LOCAL idle_in_transaction_session_timeout = '{_MOST_SECONDS}s'"))
            row = _next(session)
            if row is None:
                return None
            told = _published(_publication(row), self._settings)
            if "error" in told:
                row.problem = told["error"]
            else:
                row.published = told
        log.info("compression.published", job=row.job_id, version=told.get("version"), problem=row.problem)
        return row.job_id


class _NotNow(Exception):
    """MLflow does not answer; it is tried again."""


def _next(session: Session) -> Compression | None:
    """The oldest that is made, whose job is still to be finished by it; locked."""
    wanted = (
        select(Compression)
        .join(Job, Job.id == Compression.job_id)
        .where(
            Compression.made.is_not(None),
            Compression.published.is_(None),
            Compression.problem.is_(None),
            Job.state.in_((JobState.QUEUED, JobState.RUNNING)),
        )
    )
    return session.scalars(
        wanted.order_by(Compression.made_at).limit(1).with_for_update(of=Compression, skip_locked=True)
    ).one_or_none()


def note_made(session: Session, job_id: str, made: dict[str, Any]) -> None:
    """Write down what was made, for a control process to publish. The job's lease is held."""
    row = session.get_one(Compression, job_id, with_for_update=True)
    if row.made is None:
        row.made, row.made_at = made, func.clock_timestamp()


def withdraw(session: Session, job_id: str) -> bool:
    """Take back what was made, for a job that is to end; False where it is being published, or has been."""
    unpublished = select(Compression).where(Compression.job_id == job_id, Compression.published.is_(None))
    row = session.scalars(unpublished.with_for_update(skip_locked=True)).one_or_none()
    if row is None:
        return False
    row.made = row.made_at = None
    return True


def _publication(row: Compression) -> Publication:
    assert row.made is not None
    made, model = row.made, FiledVersion.from_row(row.model)
    against = FiledVersion.from_row(row.against).spelled if row.against is not None else model.spelled
    return Publication(
        job_id=row.job_id,
        name=made["name"],
        version=model.version,
        folder=made["folder"],
        parameters=made["parameters"],
        figures={name: made[name] for name in ("bytes", "source_bytes", "ratio") if made.get(name) is not None}
        | (made["figures"] or {}),
        parent=against,
        alias=made["alias"],
    )


def _published(publication: Publication, settings: Settings) -> dict[str, Any]:
    """What the process says that does it. Raises `_NotNow` for what time mends."""
    done = subprocess.run(
        [sys.executable, "-m", "penstock.compressions.publication"],
        input=publication.with_settings(settings),
        capture_output=True,
        timeout=_MOST_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        last = " ".join(done.stderr.decode(errors="replace").strip().splitlines()[-1:])
        log.error("compression.publication_crashed", job=publication.job_id, exit_code=done.returncode, said=last)
        message = f"the process that registers it ended with {done.returncode}; the control process's log says why"
        return {"error": {"code": "publication_failed", "message": message}}
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if told.pop("passing", False):
        raise _NotNow(told["error"]["message"])
    return told
