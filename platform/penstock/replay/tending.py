"""One thread in every control process: works off replays, a short transaction at a time.

Nobody leads. Who works at a replay holds its row, and others pass it over. All that it does is in rows: a process that
dies loses nothing, and another goes on.
"""

import threading
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import func, insert, select, tuple_
from sqlalchemy.orm import Session

from penstock.auth.system_tenant import SYSTEM_TENANT_ID
from penstock.db import DATABASE_AWAY, Database
from penstock.ids import ascending_ids
from penstock.jobs.models import Job
from penstock.jobs.states import JobState
from penstock.logs import get_logger
from penstock.registry.models import Deployment
from penstock.replay.comparing import Pair, begin, settle, sweep_dropped
from penstock.replay.models import UNFINISHED, Comparison, ComparisonState, Mode, Replay, ReplayState

MOST_UNDER_WAY: Final = 64
"""Comparisons of one replay whose jobs are queued or running at a time."""
_LISTED_AT_ONCE: Final = 500
_BEGUN_AT_ONCE, _SETTLED_AT_ONCE = 16, 32
_PAUSE_SECONDS: Final = 0.5
_SWEPT_AT_ONCE: Final = 50
log = get_logger(__name__)


class ReplayTender:
    """Works at all replays that are due, those first that have waited longest."""

    def __init__(self, database: Database, *, sweep_seconds: float) -> None:
        self._database = database
        self._pause = min(sweep_seconds, 1.0)

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set; outages are waited out."""
        while not stop.is_set():
            try:
                while self.work_once() and not stop.is_set():
                    pass
            except (*DATABASE_AWAY, OSError) as error:
                log.warning("replay.tending_interrupted", error=type(error).__name__)
            stop.wait(self._pause)

    def work_once(self) -> bool:
        """Tidy up, and take one step of the replay that waited longest; False when there is nothing to do."""
        with self._database.transaction() as session:  # its own: what is swept holds up no replay, nor the other way
            swept = sweep_dropped(session, most=_SWEPT_AT_ONCE) > 0
        return self._step() or swept

    def _step(self) -> bool:
        replay_id = ""
        try:
            with self._database.transaction() as session:
                replay = _take(session)
                if replay is None:
                    return False
                replay_id = replay.id
                moved = _list(session, replay) if replay.state == ReplayState.GATHERING else _compare(session, replay)
                _due(replay, session, seconds=0.0 if moved else _PAUSE_SECONDS)
        except (*DATABASE_AWAY, OSError):
            raise
        except Exception as error:  # one replay that cannot be worked at does not hold up the others
            log.exception("replay.step_failed", replay=replay_id, error=type(error).__name__)
            with self._database.transaction() as session:
                _due(session.get_one(Replay, replay_id), session, seconds=5.0)
        return True


def _take(session: Session) -> Replay | None:
    due = select(Replay).where(Replay.state.in_(UNFINISHED), Replay.due_at <= func.clock_timestamp())
    return session.scalars(due.order_by(Replay.due_at).limit(1).with_for_update(skip_locked=True)).one_or_none()


def _due(replay: Replay, session: Session, *, seconds: float) -> None:
    replay.due_at = session.scalars(select(func.clock_timestamp() + timedelta(seconds=seconds))).one()


def _list(session: Session, replay: Replay) -> bool:
    """List the next jobs; when all are listed, or as many as were wanted, the comparing begins."""
    room = min(_LISTED_AT_ONCE, int(replay.filter["limit"]) - replay.total)
    found = _stored(session, replay, room)
    if found:
        rows = [
            {"id": id_, "source_id": job_id, "replay_id": replay.id}
            for id_, (job_id, _) in zip(ascending_ids("cmp"), found, strict=False)
        ]
        session.execute(insert(Comparison), rows)
        job_id, finished_at = found[-1]
        replay.gathered_to = f"{finished_at.isoformat()} {job_id}"
        replay.total += len(found)
    if len(found) < room or replay.total >= int(replay.filter["limit"]):
        replay.state = ReplayState.RUNNING
        log.info("replay.running", replay=replay.id, total=replay.total)
    return True


def _stored(session: Session, replay: Replay, most: int) -> list[tuple[str, datetime]]:
    """The next finished jobs of the reference, the latest first, with when they ended."""
    wanted = select(Job.id, Job.finished_at).where(
        Job.deployment_id == replay.reference_id,
        Job.state == JobState.SUCCEEDED,
        Job.kind == "generate",
        Job.tenant_id != SYSTEM_TENANT_ID,
        Job.finished_at < (datetime.fromisoformat(replay.filter["until"]) if replay.filter["until"] else func.now()),
    )
    if replay.filter["since"]:
        wanted = wanted.where(Job.finished_at >= datetime.fromisoformat(replay.filter["since"]))
    if replay.filter["tenant"]:
        wanted = wanted.where(Job.tenant_id == replay.filter["tenant"])
    if replay.gathered_to is not None:
        finished_at, job_id = replay.gathered_to.split(" ")
        wanted = wanted.where(tuple_(Job.finished_at, Job.id) < (datetime.fromisoformat(finished_at), job_id))
    rows = session.execute(wanted.order_by(Job.finished_at.desc(), Job.id.desc()).limit(most))
    return [(job_id, finished_at) for job_id, finished_at in rows if finished_at is not None]


def _compare(session: Session, replay: Replay) -> bool:
    """Write down what has ended, begin the next, and end the replay when nothing is left. Whether anything moved."""
    settled = settle(session, Comparison.replay_id == replay.id, most=_SETTLED_AT_ONCE)
    begun = _begin_next(session, replay)
    states = [each.comparison.state for each in settled] + [each.state for each in begun]
    replay.done += states.count(ComparisonState.DONE)
    replay.lost += states.count(ComparisonState.LOST)
    if not (settled or begun) and not _left(session, replay):
        now = session.scalars(select(func.clock_timestamp())).one()
        replay.state, replay.finished_at = ReplayState.COMPLETED, now
        log.info("replay.completed", replay=replay.id, done=replay.done, lost=replay.lost)
    return bool(settled or begun)


def _begin_next(session: Session, replay: Replay) -> list[Comparison]:
    under_way = select(func.count()).where(
        Comparison.replay_id == replay.id, Comparison.state == ComparisonState.UNDER_WAY
    )
    room = min(MOST_UNDER_WAY - (session.scalar(under_way) or 0), _BEGUN_AT_ONCE)
    waiting = select(Comparison).where(Comparison.replay_id == replay.id, Comparison.state == ComparisonState.WAITING)
    locked = waiting.order_by(Comparison.id).limit(max(room, 0)).with_for_update(skip_locked=True)
    found = list(session.scalars(locked))
    if found:
        pair = Pair(session.get_one(Deployment, replay.reference_id), session.get_one(Deployment, replay.candidate_id))
        begin(session, [(each, Mode(replay.mode)) for each in found], pair)
    return found


def _left(session: Session, replay: Replay) -> bool:
    unsettled = Comparison.state.in_((ComparisonState.WAITING, ComparisonState.UNDER_WAY))
    return (
        session.scalar(select(Comparison.id).where(Comparison.replay_id == replay.id, unsettled).limit(1)) is not None
    )
