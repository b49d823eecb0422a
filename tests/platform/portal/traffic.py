"""Points of metrics as a day of real use leaves them: a rhythm, noise, bursts, a bad quarter of an hour, long tails.

Everything is drawn from one seed and counted back from the moment that is asked for, so that each call shows the same.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import cos, floor, log, pi
from random import Random
from typing import Final

from penstock.rollups import writing
from penstock.rollups.counting import Point
from penstock.rollups.histogram import GROWTH
from penstock.rollups.models import MetricProgress
from penstock.rollups.series import SAMPLES
from sqlalchemy.orm import Session

HOSTED: Final = {"model": "invoice-extractor", "version": "1"}
ASKED: Final = HOSTED | {"class": "interactive"}
_BUSIEST: Final = 190.0
"""Jobs a minute, at the height of the day."""
_PLACES, _PAGES = 32, 4096
_BAD: Final = range(262, 279)
"""Minutes ago in which a part of the jobs failed and the others waited longer."""


@dataclass(frozen=True)
class Minute:
    """What happened in one minute. `strain` is 1 where jobs just fit, and more where they queue."""

    jobs: int
    strain: float
    bad: bool


def write_traffic(session: Session, now: datetime, *, minutes: int = 60) -> None:
    """The points of so many minutes up to now, as the keeper writes them."""
    newest = now.replace(second=0, microsecond=0)
    for name in ("counts", "samples"):
        session.merge(MetricProgress(name=name, since=newest - timedelta(days=40), through=now))
    random = Random(20)
    points: list[Point] = []
    for back, minute in enumerate(_minutes(random, minutes)):
        points += _points(random, newest - timedelta(minutes=back), minute)
    writing.replace(session, points)


def _minutes(random: Random, count: int) -> Iterator[Minute]:
    """From the newest back: the height of the day was two hours ago, the dead of night ten hours before that."""
    drift = burst = 0.0
    for back in range(count):
        rhythm = 0.58 + 0.42 * cos(2 * pi * (back - 120) / 1440)
        drift = 0.97 * drift + random.gauss(0, 0.018)
        burst = 0.7 * burst + (random.uniform(0.15, 0.4) if random.random() < 0.02 else 0.0)
        load = max(rhythm + drift + burst, 0.05)
        jobs = max(round(random.gauss(_BUSIEST * load, (_BUSIEST * load) ** 0.5)), 1)
        yield Minute(jobs, load * (1.5 if back in _BAD else 1.0), back in _BAD)


def _points(random: Random, at: datetime, minute: Minute) -> Iterator[Point]:
    yield from (_counted(name, at, ASKED, value) for name, value in _tokens(random, minute.jobs).items())
    failed = _poisson(random, minute.jobs * (0.09 if minute.bad else 0.004))
    cancelled = _poisson(random, minute.jobs * 0.008)
    succeeded = max(minute.jobs - failed - cancelled, 0)
    for state, many in (("succeeded", succeeded), ("failed", failed), ("cancelled", cancelled)):
        yield _counted("jobs.finished", at, ASKED | {"state": state}, many)
    crashed = failed // 4 if minute.bad else 0
    for code, many in (("forward_failed", failed - crashed), ("engine_crashed", crashed)):
        yield _counted("jobs.failed", at, ASKED | {"code": code}, many)
    waited = max(minute.strain - 0.8, 0.0) ** 2 * 4
    first = [random.lognormvariate(log(0.16 + 0.1 * minute.strain), 0.45) + waited for _ in range(minute.jobs)]
    yield _spread("ttft.seconds", at, first)
    yield _spread("latency.seconds", at, [each + random.lognormvariate(log(1.7), 0.55) for each in first[:succeeded]])
    yield from _sampled(random, at, minute, waited)


def _tokens(random: Random, jobs: int) -> dict[str, int]:
    given = round(jobs * random.gauss(470, 25))
    written, cached = round(jobs * random.gauss(112, 6)), round(given * random.gauss(0.57, 0.025))
    return {"jobs.submitted": jobs, "tokens.input": given, "tokens.output": written, "tokens.cached": cached}


def _sampled(random: Random, at: datetime, minute: Minute, waited: float) -> Iterator[Point]:
    """What the keeper looks at six times a minute; each value is the minute's mean."""
    depth = _poisson(random, 1.2 * minute.strain + 14 * waited)
    running = min(_PLACES * (0.12 + 0.72 * minute.strain) + random.gauss(0, 1.2), _PLACES)
    pages = min(_PAGES * (0.2 + 0.55 * minute.strain) + random.gauss(0, 70), _PAGES)
    oldest = depth and 0.2 + waited + random.expovariate(3)
    for name, value, of in (
        ("queue.depth", float(depth), ASKED), ("queue.oldest_seconds", oldest, ASKED),
        ("kv.pages_in_use", pages, HOSTED), ("kv.pages", float(_PAGES), HOSTED),
        ("batch.running", running, HOSTED), ("batch.places", float(_PLACES), HOSTED),
    ):  # fmt: skip
        yield Point(name, at, of, 6, value * 6.0, value)
    yield Point(SAMPLES, at, {}, 6, 6.0, 1.0)


def _counted(name: str, at: datetime, labels: dict[str, str], value: int) -> Point:
    return Point(name, at, labels, 1, float(value), float(value))


def _spread(name: str, at: datetime, values: list[float]) -> Point:
    buckets = Counter(str(floor(log(value) / log(GROWTH))) for value in values)
    return Point(name, at, ASKED, len(values), sum(values), max(values, default=0.0), dict(buckets))


def _poisson(random: Random, mean: float) -> int:
    """How many of independent arrivals there are where `mean` are expected; good for small means."""
    many, waited = 0, random.expovariate(1.0)
    while waited < mean:
        many, waited = many + 1, waited + random.expovariate(1.0)
    return many
