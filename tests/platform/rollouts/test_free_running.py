"""The free-running sample's sums: pairs, whatever their order, and means of what both versions answered."""

import numpy as np
import pytest
from penstock.rollouts.evidence import Evidence
from penstock.rollouts.free_running import Ended, FreeRun
from penstock.rollouts.policy import Policy
from penstock.rollouts.presentation import evidence_document
from penstock.rollouts.statistics import log_mean_evidence, log_threshold

ALPHA = 0.05


def test_only_what_both_answered_and_told_is_timed() -> None:
    free = FreeRun()
    free = free.plus(Ended(False, 2.0, 1.0), Ended(False, 1.0, 0.5), exact=True)
    free = free.plus(Ended(False, None, 3.0), Ended(False, 9.0, 0.5), exact=False)
    free = free.plus(Ended(False, 9.0, None), Ended(False, 1.0, 0.5), exact=False)
    free = free.plus(Ended(True, 99.0, 99.0), Ended(False, 99.0, 99.0), exact=True)
    free = free.plus(Ended(False, 99.0, 99.0), Ended(True, 99.0, 99.0), exact=True)
    shown = evidence_document(Evidence(free=free), Policy())["free"]
    assert (shown["jobs"], shown["answered"], shown["exact"]) == (5, 3, pytest.approx(1 / 3))
    assert shown["candidate"] == {"failures": 1, "mean_seconds": 5.5, "mean_device_seconds": 2.0}
    assert shown["champion"] == {"failures": 1, "mean_seconds": 1.0, "mean_device_seconds": 0.5}
    assert shown["errors"]["units"] == 5
    assert shown["errors"]["low"] < shown["errors"]["mean"] == 0 < shown["errors"]["high"]


def test_of_nothing_nothing_is_told() -> None:
    shown = evidence_document(Evidence(), Policy())["free"]
    assert shown["exact"] is shown["champion"]["mean_seconds"] is shown["candidate"]["mean_device_seconds"] is None


@pytest.mark.parametrize(("own", "others", "at_most", "at_least"), [(0.1, 0.1, 0.05, 0.0), (0.5, 0.1, 1.0, 0.95)])
def test_versions_that_fail_alike_are_seldom_held_and_worse_ones_soon(
    own: float, others: float, at_most: float, at_least: float
) -> None:
    """Looked at whenever one failed: the very arithmetic of the gate."""
    random, runs, held = np.random.default_rng(7), 100, 0
    for _ in range(runs):
        free = FreeRun()
        for one, other in zip(random.random(60) < own, random.random(60) < others, strict=True):
            free = free.plus(Ended(bool(one)), Ended(bool(other)), exact=False)
            if one and log_mean_evidence(free.errors, 0.0, above=True) >= log_threshold(ALPHA):
                held += 1
                break
    assert at_least <= held / runs <= at_most
