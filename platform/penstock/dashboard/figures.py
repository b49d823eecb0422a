"""The figures at the top of the overview: how the installation is now. Takes a session, changes nothing."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from penstock.dead_letters.models import DeadLetter
from penstock.registry.hosting_services import HEARTBEAT_SECONDS
from penstock.registry.models import Worker
from penstock.rollouts.models import UNDER_WAY, Rollout
from penstock.rollups.asking import ask
from penstock.rollups.reading import Chart, read
from penstock.rollups.sampling import Standing, standing_now

_LATELY: Final = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Figures:
    """What an operator looks for first. Rates and percentiles are of the last five minutes; None where nothing was."""

    waiting: int
    oldest_seconds: float
    running: int
    finished: float
    failed: float
    tokens_per_second: float
    ttft_p50: float | None
    ttft_p95: float | None
    workers: int
    silent_workers: int
    dead_letters: int
    rollouts: int

    @property
    def failure_rate(self) -> float | None:
        """The share of the jobs that ended which failed."""
        return self.failed / self.finished if self.finished else None


def figures_now(session: Session, now: datetime) -> Figures:
    """As they are at this moment."""
    standing: Standing = standing_now(session)
    names = ("jobs.finished", "jobs.failed", "tokens.output", "ttft.seconds")
    lately = read(session, ask(names, now - _LATELY, now, step=300))
    live = func.count().filter(Worker.heartbeat_at > func.clock_timestamp() - timedelta(seconds=HEARTBEAT_SECONDS))
    workers, all_workers = session.execute(select(live, func.count()).select_from(Worker)).one()
    return Figures(
        waiting=standing.waiting,
        oldest_seconds=standing.oldest_seconds,
        running=standing.running,
        finished=_sum(lately, "jobs.finished"),
        failed=_sum(lately, "jobs.failed"),
        tokens_per_second=_sum(lately, "tokens.output") / max(len(lately.moments) * lately.step, 1),
        ttft_p50=_last(lately, "p50"),
        ttft_p95=_last(lately, "p95"),
        workers=workers,
        silent_workers=all_workers - workers,
        dead_letters=session.scalar(select(func.count()).where(DeadLetter.state == "open")) or 0,
        rollouts=session.scalar(select(func.count()).where(Rollout.state.in_(UNDER_WAY))) or 0,
    )


def _sum(chart: Chart, series: str) -> float:
    return sum(value or 0.0 for line in chart.lines if line.series.name == series for value in line.values)


def _last(chart: Chart, statistic: str) -> float | None:
    known = [value for line in chart.lines if line.statistic == statistic for value in line.values if value is not None]
    return known[-1] if known else None
