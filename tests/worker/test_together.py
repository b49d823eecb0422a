"""What threads ask for at the same time is done in one go, and fails in one go."""

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
from penstock_worker.together import GroupFailed, Together

from tests.patience import eventually

ASKING = 5


@dataclass
class Work:
    """Doubles numbers; the first group waits for `go`, so that others gather behind it. It breaks on a zero."""

    groups: list[list[int]] = field(default_factory=list)
    began: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)

    def __call__(self, numbers: Sequence[int]) -> list[int]:
        self.groups.append(list(numbers))
        self.began.set()
        assert self.go.wait(30)
        if 0 in numbers:
            raise ValueError("nothing to double")
        return [2 * number for number in numbers]


def gathered(pool: ThreadPoolExecutor, work: Work, numbers: Sequence[int]) -> list["Future[int]"]:
    """One thread at work with the first number, the others waiting by the time that it goes on."""
    together = Together(work)
    first = pool.submit(together.ask, numbers[0])
    assert work.began.wait(30)
    others = [pool.submit(together.ask, number) for number in numbers[1:]]
    eventually(lambda: len(together._waiting) == len(others), "the others")
    work.go.set()
    return [first, *others]


def test_who_asks_meanwhile_is_served_in_one_group_each_with_its_own_result() -> None:
    work = Work()
    with ThreadPoolExecutor(ASKING) as pool:
        asked = gathered(pool, work, range(1, ASKING + 1))
        assert [each.result() for each in asked] == [2, 4, 6, 8, 10]
    assert [sorted(group) for group in work.groups] == [[1], [2, 3, 4, 5]]


def test_a_group_that_fails_fails_for_all_of_it_and_for_nobody_else() -> None:
    work = Work()
    with ThreadPoolExecutor(ASKING) as pool:
        first, *others = gathered(pool, work, [1, 0, 3])
        assert first.result() == 2
        for other in others:
            with pytest.raises(GroupFailed) as failed:
                other.result()
            assert isinstance(failed.value.__cause__, ValueError)


def test_an_answer_too_few_is_a_failure() -> None:
    with pytest.raises(GroupFailed):
        Together[int, int](lambda numbers: []).ask(1)
