"""Whether a hundred thousand waiting jobs slow the claims of a worker."""

import statistics
import time
from dataclasses import dataclass

from penstock.db import Database

from bench.claims import claim_one, empty_database, fill


@dataclass(frozen=True)
class Claims:
    """Claims in a second by one thread, each a whole transaction, with so many jobs waiting. Medians over rounds."""

    few: int
    many: int
    rounds: int
    tenants: int
    few_per_second: float
    many_per_second: float
    many_over_few: float


def measure_claims(few: int = 100, many: int = 100_000, rounds: int = 5, tenants: int = 10) -> Claims:
    """Rounds with many waiting, then rounds with few, on a database that forces its writes to the disk."""
    with empty_database() as database:
        fill(database, many, tenants)
        of_many = [_rate(database, few // 2) for _ in range(rounds + 1)][1:]  # the first warms up
        of_few = [_refilled(database, few, tenants) for _ in range(rounds)]
    fast, slow = statistics.median(of_few), statistics.median(of_many)
    return Claims(few, many, rounds, tenants, round(fast, 1), round(slow, 1), round(slow / fast, 3))


def _refilled(database: Database, few: int, tenants: int) -> float:
    fill(database, few, tenants)
    return _rate(database, few // 2)


def _rate(database: Database, count: int) -> float:
    began = time.perf_counter()
    for at in range(count):
        claim_one(database, at)
    return count / (time.perf_counter() - began)
