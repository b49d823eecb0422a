"""Identifiers sort by time and do not repeat."""

import time

from penstock.ids import new_id


def test_later_ids_sort_later() -> None:
    first = new_id("job")
    time.sleep(0.002)
    assert first < new_id("job")


def test_ids_are_unique_and_of_one_shape() -> None:
    ids = {new_id("job") for _ in range(10_000)}
    assert len(ids) == 10_000
    assert all(len(one) == len("job_") + 26 and one.startswith("job_") for one in ids)
