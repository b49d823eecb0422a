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


def measure_claims(*, many: int, rounds: int, few: int = 100, tenants: int = 10) -> Claims:
    """Rounds in turn on two servers that force their writes to the disk, so that what slows one slows the other."""
    with empty_database() as long, empty_database() as short:
        fill(long, many, tenants)
        pairs = [(_refilled(short, few, tenants), _rate(long, few // 2)) for _ in range(rounds + 1)][1:]  # one warms up
    of_few, of_many = zip(*pairs, strict=True)
    return Claims(
        few,
        many,
        rounds,
        tenants,
        round(statistics.median(of_few), 1),
        round(statistics.median(of_many), 1),
        round(statistics.median(slow / fast for fast, slow in pairs), 3),
    )


def _refilled(database: Database, few: int, tenants: int) -> float:
    fill(database, few, tenants)
    return _rate(database, few // 2)


def _rate(database: Database, count: int) -> float:
    began = time.perf_counter()
    for at in range(count):
        claim_one(database, at)
    return count / (time.perf_counter() - began)
