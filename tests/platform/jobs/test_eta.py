"""The interval says how sure it is: over many queues, as many ends lie within as it claims."""

import random
from collections.abc import Callable
from heapq import heapify, heappop, heappush

import pytest
from penstock.jobs.eta import COVERAGE, MOST_SEEN, Evidence, Interval, estimate

Draw = Callable[[random.Random], float]


def lognormal(chance: random.Random) -> float:
    return chance.lognormvariate(1.0, 0.8)


def short_or_long(chance: random.Random) -> float:
    """Answers that stop by themselves, and answers that run into their limit."""
    return chance.uniform(0.5, 1.5) if chance.random() < 0.7 else chance.uniform(9.0, 10.0)


def even(chance: random.Random) -> float:
    return chance.uniform(1.8, 2.2)


def play(draw: Draw, slots: int, load: float, jobs: int, seed: int) -> list[tuple[Interval, float]]:
    """A queue of `slots` places, at `load` times what it can bear: each arrival's estimate, and the true seconds.

    Estimates know only what had ended by then.
    """
    chance = random.Random(seed)
    mean = sum(draw(chance) for _ in range(2000)) / 2000
    free_at, now = [0.0] * slots, 0.0
    heapify(free_at)
    history: list[tuple[float, float]] = []  # start, end
    told: list[tuple[Interval, float]] = []
    for number in range(jobs):
        now += chance.expovariate(load * slots / mean)
        start = max(heappop(free_at), now)
        end = start + draw(chance)
        if number > 3 * slots + 20:
            told.append((estimate(_seen(history, now, slots), _ahead(history, now), seed=str(number)), end - now))
        heappush(free_at, end)
        history.append((start, end))
    return told


def _seen(history: list[tuple[float, float]], now: float, slots: int) -> Evidence:
    ended = sorted((end, end - start) for start, end in history if end <= now)[-MOST_SEEN:]
    return Evidence([taken for _, taken in ended], [now - start for start, end in history if start <= now < end], slots)


def _ahead(history: list[tuple[float, float]], now: float) -> int:
    return sum(start > now for start, _ in history)


@pytest.mark.parametrize(
    ("draw", "slots", "load"),
    [(lognormal, 1, 0.9), (lognormal, 4, 1.2), (short_or_long, 4, 1.1), (even, 2, 1.2)],
)
def test_as_many_ends_lie_within_as_the_interval_claims(draw: Draw, slots: int, load: float) -> None:
    told = [each for seed in range(6) for each in play(draw, slots, load, 3 * slots + 61, seed)]
    within = sum(interval.earliest <= seconds <= interval.latest for interval, seconds in told) / len(told)
    assert COVERAGE - 0.08 < within < COVERAGE + 0.12, f"{within:.2f} of {len(told)}"


def test_little_evidence_makes_it_wide_but_not_wrong() -> None:
    chance = random.Random(7)
    inside = []
    for number in range(300):
        evidence = Evidence([lognormal(chance) for _ in range(2)], [], 1)
        interval = estimate(evidence, 3, seed=str(number))
        inside.append(interval.earliest <= sum(lognormal(chance) for _ in range(4)) <= interval.latest)
    assert 0.7 < sum(inside) / len(inside) < 0.95


def test_more_evidence_narrows_it() -> None:
    one = estimate(Evidence([2.0], [], 1), 0, seed="x")
    many = estimate(Evidence([1.9, 2.0, 2.1] * 10, [], 1), 0, seed="x")
    assert one.latest / one.earliest > 4
    assert many.latest / many.earliest < 1.3
    assert (one.seen, many.seen) == (1, 30)


def test_a_slot_that_is_busy_comes_free_when_its_job_is_through() -> None:
    taken = [10.0] * 30
    fresh = estimate(Evidence(taken, [1.0], 1), 0, seed="x")
    nearly = estimate(Evidence(taken, [9.0], 1), 0, seed="x")
    assert fresh.earliest == pytest.approx(19.0)
    assert nearly.earliest == pytest.approx(11.0)


def test_more_slots_and_fewer_before_it_bring_it_forward() -> None:
    taken = [1.0, 2.0, 3.0] * 10
    far = estimate(Evidence(taken, [], 1), 40, seed="x")
    near = estimate(Evidence(taken, [], 1), 4, seed="x")
    wide = estimate(Evidence(taken, [], 8), 40, seed="x")
    assert near.latest < far.earliest
    assert wide.latest < far.earliest
