"""What a process remembers of how many jobs wait is believed only as long as it must be so."""

from penstock.jobs.crowding import FASTEST, Crowding


class Clock:
    """Seconds, as the test says."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_tenant_that_was_never_counted_is_counted() -> None:
    assert not Crowding(Clock()).knows_room("ten_a", 100_000)


def test_room_is_known_until_the_fastest_writers_could_have_filled_it() -> None:
    clock = Clock()
    crowding = Crowding(clock)
    assert crowding.look("ten_a", lambda: 4000) == 4000
    assert crowding.knows_room("ten_a", 25_000)
    assert not crowding.knows_room("ten_b", 25_000)
    clock.now += 19_000 / FASTEST
    assert crowding.knows_room("ten_a", 25_000)
    clock.now += 2000 / FASTEST
    assert not crowding.knows_room("ten_a", 25_000)


def test_a_large_limit_is_counted_once_in_a_second_all_the_same() -> None:
    clock = Clock()
    crowding = Crowding(clock)
    crowding.look("ten_a", lambda: 0)
    clock.now += 0.9
    assert crowding.knows_room("ten_a", 10**9)
    clock.now += 0.2
    assert not crowding.knows_room("ten_a", 10**9)


def test_near_its_limit_a_tenant_is_counted_each_time() -> None:
    crowding = Crowding(Clock())
    crowding.look("ten_a", lambda: 0)
    assert not crowding.knows_room("ten_a", 1000)


def test_a_count_is_as_old_as_its_beginning() -> None:
    clock = Clock()
    crowding = Crowding(clock)

    def slowly() -> int:
        clock.now += 0.5
        return 0

    crowding.look("ten_a", slowly)
    clock.now += 0.6
    assert not crowding.knows_room("ten_a", 10**9)
