"""One thread in every control process: keeps the points of metrics up to date.

Of several, one writes at a time: whoever holds the rows of `metric_progress`. What jobs tell is counted anew for the
last minutes at each look, and once more when they are final, so a finish that is committed late is in it and nothing is
in it twice. A process that was away begins where the last one stopped.
"""

import threading
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from penstock.db import Database
from penstock.logs import get_logger
from penstock.rollups import writing
from penstock.rollups.counting import counted
from penstock.rollups.models import MetricProgress
from penstock.rollups.sampling import sampled
from penstock.rollups.series import SAMPLES, SERIES

LOOK_SECONDS: Final = 10
FINAL_AFTER: Final = timedelta(minutes=5)
"""A minute is counted a last time so long after it: no transaction that ended a job in it is open then."""
AT_ONCE: Final = timedelta(hours=1)
_MINUTE: Final = timedelta(minutes=1)
_COUNTS, _SAMPLES = "counts", "samples"
_ALL: Final = (*SERIES, SAMPLES)
log = get_logger(__name__)


class RollupKeeper:
    """Looks every `LOOK_SECONDS` until it is told to stop; what was missed is caught up with at once."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def run(self, stop: threading.Event) -> None:
        """Look until `stop` is set; outages are waited out."""
        while not stop.is_set():
            behind = False
            try:
                with self._database.transaction() as session:
                    behind = keep(session)
            except SQLAlchemyError as error:
                log.warning("rollups.interrupted", error=type(error).__name__)
            stop.wait(0.05 if behind else LOOK_SECONDS)


def keep(session: Session) -> bool:
    """Sample, count what is new, and make final what is old enough. Whether more is left to make final.

    Does nothing while another process is at it.
    """
    now = session.scalars(select(func.clock_timestamp())).one()
    counts = _hold(session, _COUNTS, _began(session, now))
    samples = _hold(session, _SAMPLES, _moment(now - FINAL_AFTER))
    if counts is None or samples is None:
        return False
    _count_fresh(session, counts, now, last_look=samples.through)
    _sample(session, samples, now)
    return _count_final(session, counts, now)


def _sample(session: Session, progress: MetricProgress, now: datetime) -> None:
    moment = _moment(now)
    if moment > progress.through:
        writing.add(session, sampled(session, _minute(now)))
        progress.through = moment


def _count_fresh(session: Session, progress: MetricProgress, now: datetime, last_look: datetime) -> None:
    """Write what is not final yet: of the last minute, or of all that time where nobody has looked for a while."""
    back = _MINUTE if now - last_look < _MINUTE else FINAL_AFTER
    since = max(_minute(now) - back, progress.through)
    writing.replace(session, counted(session, since, _minute(now) + _MINUTE))


def _count_final(session: Session, progress: MetricProgress, now: datetime) -> bool:
    """Go on from where what is final ends, an hour at most. Whether more is left."""
    final = _minute(now - FINAL_AFTER)
    until = min(final, _hour(progress.through) + AT_ONCE)
    if until <= progress.through:
        return False
    writing.replace(session, counted(session, progress.through, until))
    writing.fold(session, _ALL, progress.through, now)
    writing.prune(session, _ALL, now)
    progress.through = until
    return until < final


def _hold(session: Session, name: str, begins: datetime) -> MetricProgress | None:
    """The progress of that name, which nobody else has until this transaction ends; None when somebody has it."""
    first = insert(MetricProgress).values(name=name, since=begins, through=begins)
    session.execute(first.on_conflict_do_nothing())
    held = select(MetricProgress).where(MetricProgress.name == name).with_for_update(skip_locked=True)
    return session.scalars(held.execution_options(populate_existing=True)).one_or_none()


def _began(session: Session, now: datetime) -> datetime:
    """Where counting begins for the first time: at the oldest job, as far back as points are kept."""
    oldest = session.scalar(text("SELECT created_at FROM job ORDER BY id LIMIT 1"))
    return max(_minute(min(oldest or now, now - FINAL_AFTER)), _minute(now - writing.HOURS_KEPT))


def _minute(moment: datetime) -> datetime:
    return moment.replace(second=0, microsecond=0)


def _hour(moment: datetime) -> datetime:
    """A fold must find all of an hour's minutes, which are deleted early where much is caught up with."""
    return moment.replace(minute=0, second=0, microsecond=0)


def _moment(moment: datetime) -> datetime:
    """The moment of the look that `moment` belongs to: there is one sample for each."""
    return moment.replace(second=moment.second - moment.second % LOOK_SECONDS, microsecond=0)
