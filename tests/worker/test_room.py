"""Engines share a device: they shrink for one that comes, grow when one has gone, and cold ones make way."""

import threading
from dataclasses import dataclass, field

import pytest
from penstock_worker.device_memory import MIB, DoesNotFit, Party
from penstock_worker.messages import Needs
from penstock_worker.room import Admission, Room, _Place

from tests.patience import eventually

PAGE = 10


def needs(weights: int = 300, *, kv: int | None = 400, longest: int = 50, free: int = 10**6) -> Needs:
    return Needs("cpu", weights=weights, workspace=0, page=PAGE, longest=longest, most=10**9, kv=kv, free=free)


@dataclass
class Version:
    """An engine of which only sizes are known. It shrinks and leaves when it is told to, or (slow) when it is let."""

    room: Room
    deployment_id: str
    makes_way: bool = False
    may_leave_now: bool = True
    slow: bool = False
    kv_bytes: int = 0
    told: list[int] = field(default_factory=list)
    leaving: threading.Event = field(default_factory=threading.Event)

    @property
    def name(self) -> str:
        return f"{self.deployment_id}:1"

    def come(self, asked: Needs) -> Admission:
        """Be admitted, and load at once."""
        admission = self.room.admit(self, asked, self.leaving.is_set)
        self.kv_bytes = 400 if admission.kv_bytes is None else admission.kv_bytes
        self.room.settle(self.deployment_id, weight_bytes=asked.weights, kv_bytes=self.kv_bytes)
        return admission

    def resize(self, kv_bytes: int) -> None:
        self.told.append(kv_bytes)
        if not self.slow:
            self.kv_bytes = kv_bytes

    def unload(self) -> None:
        self.leaving.set()
        if not self.slow:
            self.go()

    def go(self) -> None:
        self.kv_bytes = 0
        self.room.leave(self.deployment_id)


def in_background(version: Version, asked: Needs) -> tuple[threading.Thread, list[Admission | DoesNotFit]]:
    answers: list[Admission | DoesNotFit] = []

    def come() -> None:
        try:
            answers.append(version.come(asked))
        except DoesNotFit as refused:
            answers.append(refused)

    thread = threading.Thread(target=come, daemon=True)
    thread.start()
    return thread, answers


def test_the_first_has_all_and_the_second_its_share_once_the_first_has_shrunk() -> None:
    room = Room(total=1000, kv=400)
    room.share_by({"a": 0.75, "b": 0.25})
    a, b = Version(room, "a", slow=True), Version(room, "b")
    assert a.come(needs()) == Admission(400, 0.0)
    thread, answers = in_background(b, needs())
    eventually(lambda: a.told, "the request to shrink")
    assert a.told == [300]
    assert answers == []
    a.kv_bytes = 300
    thread.join(30)
    assert answers == [Admission(100, 0.0)]
    assert a.told == [300]


def test_one_that_does_not_fit_is_refused_before_anybody_shrinks() -> None:
    room = Room(total=1000, kv=400)
    a = Version(room, "a")
    a.come(needs())
    with pytest.raises(DoesNotFit, match=r"b:1 does not fit: .* of which a:1"):
        Version(room, "b").come(needs(weights=650))
    assert (a.told, a.kv_bytes) == ([], 400)


def test_shares_that_change_shrink_first_and_grow_then() -> None:
    room = Room(total=2000, kv=400)
    room.share_by({"a": 0.9, "b": 0.1})
    a, b = Version(room, "a", slow=True), Version(room, "b", slow=True)
    a.kv_bytes = 350
    a.come(needs())
    a.kv_bytes = 350
    b.come(needs())
    assert (a.kv_bytes, b.kv_bytes) == (350, 50)
    room.rebalance()
    assert (a.told[1:], b.told) == ([], [])
    room.share_by({"a": 0.5, "b": 0.5})
    room.rebalance()
    room.rebalance()
    assert (set(a.told[1:]), b.told) == ({200}, [])
    a.kv_bytes = 200
    room.rebalance()
    assert b.told == [200]


def test_two_that_grow_take_together_no_more_than_is_free() -> None:
    room = Room(total=3000, kv=600)
    room.share_by({"a": 0.6, "b": 0.2, "c": 0.2})
    a, b, c = Version(room, "a", slow=True), Version(room, "b"), Version(room, "c")
    for each, kv in ((a, 360), (b, 120), (c, 120)):
        each.kv_bytes = kv
        room._places[each.deployment_id] = _Place(
            each, Party(each.deployment_id, each.name, 300, 0, PAGE, 50, 10**9, kv / 600), kv, ready=True
        )
    room.share_by({"a": 0.2, "b": 0.4, "c": 0.4})
    a.kv_bytes = 280  # of the way to 120
    room.rebalance()
    assert a.kv_bytes + b.kv_bytes + c.kv_bytes <= 600
    a.kv_bytes = 120
    room.rebalance()
    assert (b.kv_bytes, c.kv_bytes) == (240, 240)


def test_a_small_difference_is_not_worth_computing_anew() -> None:
    room = Room(total=2000, kv=400)
    room.share_by({"a": 0.5, "b": 0.5})
    a, b = Version(room, "a"), Version(room, "b")
    a.come(needs())
    b.come(needs())
    a.told.clear()
    room.share_by({"a": 0.52, "b": 0.48})
    room.rebalance()
    assert a.told + b.told == []


def test_who_is_left_grows_into_what_the_other_had() -> None:
    room = Room(total=2000, kv=400)
    room.share_by({"a": 0.5, "b": 0.5})
    a, b = Version(room, "a"), Version(room, "b")
    a.come(needs())
    b.come(needs())
    assert (a.kv_bytes, b.kv_bytes) == (200, 200)
    room.share_by({"b": 1.0})
    room.rebalance()
    assert (a.kv_bytes, b.kv_bytes) == (200, 200), "one resize, once the other has gone"
    a.go()
    room.rebalance()
    assert b.kv_bytes == 400


def test_a_cold_one_makes_way_and_the_wait_is_measured() -> None:
    room = Room(total=1000, kv=400)
    cold, warm = Version(room, "cold", makes_way=True, slow=True), Version(room, "warm")
    cold.come(needs(weights=500))
    thread, answers = in_background(warm, needs(weights=500))
    assert cold.leaving.wait(30)
    assert answers == []
    cold.go()
    thread.join(30)
    (answer,) = answers
    assert isinstance(answer, Admission)
    assert answer.kv_bytes == 400
    assert answer.waited > 0


def test_a_cold_one_that_works_is_waited_for() -> None:
    room = Room(total=1000, kv=400)
    cold = Version(room, "cold", makes_way=True, may_leave_now=False)
    cold.come(needs(weights=500))
    other = Version(room, "other", makes_way=True)
    thread, answers = in_background(other, needs(weights=500))
    thread.join(0.3)
    assert (answers, cold.leaving.is_set()) == ([], False)
    cold.may_leave_now = True
    thread.join(30)
    assert cold.leaving.is_set()
    assert len(answers) == 1


def test_a_cold_one_stays_where_its_leaving_would_be_no_help() -> None:
    room = Room(total=1000, kv=400)
    cold = Version(room, "cold", makes_way=True)
    cold.come(needs(weights=100))
    with pytest.raises(DoesNotFit):
        Version(room, "b").come(needs(weights=1200))
    assert not cold.leaving.is_set()


def test_one_that_is_wanted_no_more_stops_waiting_and_lets_the_next_in() -> None:
    room = Room(total=1000, kv=400)
    Version(room, "cold", makes_way=True, may_leave_now=False).come(needs(weights=500))
    waiting = Version(room, "b")
    thread, answers = in_background(waiting, needs(weights=500))
    thread.join(0.3)
    waiting.leaving.set()
    thread.join(30)
    (answer,) = answers
    assert isinstance(answer, DoesNotFit)
    assert Version(room, "c").come(needs(weights=100)).kv_bytes


def test_a_gpu_is_measured_by_the_first_and_what_is_free_decides() -> None:
    room = Room()
    a, b = Version(room, "a"), Version(room, "b")
    assert room.admit(a, needs(kv=None, free=2000), bool).kv_bytes is None
    thread, answers = in_background(b, needs(weights=700, kv=None, free=1000))  # 5% of that stay free
    thread.join(0.3)
    assert answers == []  # how much K and V there is, only the first can tell
    a.kv_bytes = 600
    room.share_by({"a": 0.5, "b": 0.5})
    room.settle("a", weight_bytes=300, kv_bytes=600)
    thread.join(30)
    assert (a.kv_bytes, b.kv_bytes) == (300, 300)
    with pytest.raises(DoesNotFit):
        Version(room, "c").come(needs(weights=900, kv=None, free=200))


def test_what_a_cpu_has_free_counts_pools_that_are_not_used_yet_once() -> None:
    room = Room()
    a = Version(room, "a")
    assert a.come(needs(kv=400, free=2000)).kv_bytes == 400
    with pytest.raises(DoesNotFit, match=r"which leaves 950\.0 MiB"):  # of 1,000; what the pool took shows there
        Version(room, "b").come(needs(weights=951 * MIB, kv=400, free=1000 * MIB))


def test_once_all_have_gone_the_device_is_measured_anew() -> None:
    room = Room()
    a = Version(room, "a")
    a.come(needs(kv=400))
    a.go()
    assert Version(room, "b").come(needs(kv=900)).kv_bytes == 900
    assert room.departures == 1
