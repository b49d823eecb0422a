"""Whose turn it is: shares follow the weights, idling earns nothing, nobody starves."""

from collections import Counter
from itertools import count, islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock_engine.admission import Limits, admitted
from penstock_engine.fairness import VirtualCounters
from penstock_engine.request import Generation, Request, SamplingParams
from penstock_engine.waiting import AGE_BUCKET, LOOKAHEAD, PATIENCE, WaitingQueue

from tests.engine.house import House


class Crowd:
    """Tenants who keep `depth` requests waiting each, and what each of them was given."""

    def __init__(self, house: House, weights: dict[str, float], *, prompt: int = 4, output: int = 6) -> None:
        self.house, self.weights = house, weights
        self.prompt, self.output = prompt, output
        self.used = dict.fromkeys(weights, 0)
        self.sent = 0

    def submit(self, tenant: str, count: int = 1) -> None:
        for _ in range(count):
            self.sent += 1
            prompt = [self.sent // 5**at % 5 for at in range(self.prompt)]  # all different: nothing is cached
            name, sampling = f"{tenant}-{self.sent}", SamplingParams(max_tokens=self.output)
            self.house.submit(Request(name, prompt, sampling, tenant=tenant, weight=self.weights[tenant]))

    def step(self) -> None:
        for delta in self.house.step():
            self.used[delta.request_id.split("-")[0]] += 2 + self.prompt * (delta.position == 0)

    def keep_busy(self, steps: int, depth: int = 3) -> None:
        for _ in range(steps):
            for tenant in self.weights:
                waiting = sum(each.request.tenant == tenant for each in self.house.scheduler.waiting)
                self.submit(tenant, depth - waiting)
            self.step()


@settings(max_examples=20, deadline=None)
@given(
    weights=st.lists(st.sampled_from([1.0, 2.0, 5.0]), min_size=2, max_size=5),
    prompt=st.integers(5, 12),
    output=st.integers(1, 12),
    quantum=st.sampled_from([1, 32]),
)
def test_under_backlog_shares_are_the_weights(weights: list[float], prompt: int, output: int, quantum: int) -> None:
    house = House(pages=60, max_running=4, budget=64, quantum=quantum)
    crowd = Crowd(house, {f"t{at}": weight for at, weight in enumerate(weights)}, prompt=prompt, output=output)
    crowd.keep_busy(200, depth=8)
    # Counters may stand apart by a quantum, by what runs but is not charged yet, and by the turns of the oldest.
    slack = quantum + 5 * (prompt + 2 * output) / min(weights)
    served = [crowd.used[tenant] / weight for tenant, weight in crowd.weights.items()]
    assert max(served) - min(served) <= slack


def test_a_flood_does_not_delay_a_tenant_that_asks_little() -> None:
    house = House(pages=60, max_running=2, budget=64, quantum=1)
    crowd = Crowd(house, {"flood": 1.0, "quiet": 1.0})
    crowd.submit("flood", 300)
    for _ in range(20):
        crowd.step()
    for _ in range(5):
        crowd.submit("quiet")
        waited = 0
        while any(each.request.tenant == "quiet" for each in house.scheduler.waiting):
            crowd.step()
            waited += 1
        assert waited <= 2 * crowd.output  # until one of those that run has ended, and a turn of the oldest


def test_idling_earns_no_credit() -> None:
    house = House(pages=60, max_running=4, budget=64, quantum=1)
    crowd = Crowd(house, {"steady": 1.0, "sleeper": 1.0})
    crowd.submit("sleeper")
    while house.busy:
        crowd.step()
    crowd.weights = {"steady": 1.0}
    crowd.keep_busy(200)
    crowd.weights = {"steady": 1.0, "sleeper": 1.0}
    before = dict(crowd.used)
    crowd.keep_busy(60)
    gained = {tenant: crowd.used[tenant] - before[tenant] for tenant in before}
    assert abs(gained["steady"] - gained["sleeper"]) <= 5 * (crowd.prompt + 2 * crowd.output)


def test_counters_of_those_who_idle_are_forgotten_once_passed() -> None:
    counters = VirtualCounters(1)
    for at in range(1000):
        counters.enter(f"t{at}")
        counters.leave(f"t{at}")
        counters.charge(f"t{at}", 1, 1.0)
    assert len(counters._charged) < 10


@pytest.mark.parametrize("request_class", ["shadow", "batch"])
def test_a_worse_class_does_not_starve(request_class: str) -> None:
    house = House(pages=60, max_running=1, budget=64)
    house.submit(Request("poor", [1], SamplingParams(max_tokens=1), request_class=request_class, priority=-9))  # type: ignore[arg-type]
    for at in range(2 * PATIENCE):
        house.submit(Request(f"rich{at}", [2], SamplingParams(max_tokens=1), request_class="interactive"))
    begun: list[str] = []
    while "poor" not in begun:
        begun += [delta.request_id for delta in house.step()]
    assert len(begun) == PATIENCE


class TestCharges:
    """A tenant pays for the tokens that ran for it: 1 for each of input, 2 for each of output."""

    @pytest.fixture
    def house(self) -> House:
        return House(pages=60, max_running=8, budget=64, quantum=1)

    @staticmethod
    def cost_of(house: House, *requests: Request) -> int:
        before = house.scheduler._counters._charged.get("", 0.0)
        for request in requests:
            house.submit(request)
        while house.busy:
            house.step()
        return round(house.scheduler._counters._charged[""] - before)

    def test_what_is_cached_is_free(self, house: House) -> None:
        sampling = SamplingParams(max_tokens=2)
        assert self.cost_of(house, Request("first", [1, 2, 3, 4, 5, 6, 7, 8], sampling)) == 8 + 2 * 2
        assert self.cost_of(house, Request("page", [1, 2, 3, 4, 9, 9], sampling)) == 2 + 2 * 2
        assert self.cost_of(house, Request("part", [1, 2, 3, 4, 5, 6, 9], sampling)) == 1 + 2 * 2
        assert self.cost_of(house, Request("elsewhere", [1, 2, 3, 4], sampling, namespace="other")) == 4 + 2 * 2

    def test_choices_pay_for_their_prompt_once(self, house: House) -> None:
        assert self.cost_of(house, Request("x", [1] * 7, SamplingParams(n=5, max_tokens=3))) == 7 + 5 * 3 * 2

    def test_what_was_generated_elsewhere_is_free(self, house: House) -> None:
        resumed = Request("x", [1] * 7, SamplingParams(max_tokens=5), output_ids=[[2, 2, 2]])
        assert self.cost_of(house, resumed) == 7 + 2 * 2

    def test_what_is_computed_again_is_free(self) -> None:
        house = House(pages=9, max_running=3, budget=40)
        requests = [Request(str(at), [at, 1, 0, 1, 0], SamplingParams(max_tokens=15)) for at in range(3)]
        assert self.cost_of(house, *requests) == 3 * (5 + 15 * 2)
        assert house.scheduler.preemptions > 0

    def test_equal_shares_are_of_what_is_computed(self) -> None:
        """One asks the same again and again, the other anew each time: for the same cost the one gets more."""
        house = House(pages=60, max_running=2, budget=64, quantum=1)
        numbers, served = count(), Counter[str]()
        for _ in range(300):
            for tenant in ("same", "anew"):
                waiting = sum(each.request.tenant == tenant for each in house.scheduler.waiting)
                for number in islice(numbers, 10 - waiting):
                    prompt = [1] * 12 if tenant == "same" else [2, *(number // 7**digit % 7 for digit in range(11))]
                    house.submit(Request(f"{tenant}-{number}", prompt, SamplingParams(max_tokens=2), tenant=tenant))
            served.update(delta.request_id.split("-")[0] for delta in house.step() if delta.finish_reason)
        charged = house.scheduler._counters._charged
        assert abs(charged["same"] - charged["anew"]) < 5 * (12 + 2 * 2)
        assert served["same"] > 2 * served["anew"] > 50


def queue_of(*requests: Request, quantum: int = 1) -> WaitingQueue:
    queue = WaitingQueue(VirtualCounters(quantum))
    limits = Limits(1000, 100, 100, ())
    for at, request in enumerate(requests):
        queue.add(admitted(request, limits, arrival=at, drawn_seed=0).waiting[0])
    return queue


def drain(queue: WaitingQueue, cached: dict[str, int] | None = None) -> list[str]:
    def cached_len(generation: Generation) -> int:
        return (cached or {}).get(generation.request.id, 0)

    names = []
    while (generation := queue.first(cached_len)) is not None:
        queue.admit(generation)
        names.append(generation.request.id)
    assert len(queue) == 0
    return names


def test_class_tenant_priority_deadline_age() -> None:
    queue = queue_of(
        Request("shadow", [1], request_class="shadow"),
        Request("later", [1], deadline=20.0),
        Request("none", [1]),
        Request("none-2", [1]),
        Request("sooner", [1], deadline=10.0),
        Request("first", [1], priority=1),
        Request("now", [1], request_class="interactive", priority=-1),
    )
    assert drain(queue) == ["now", "first", "sooner", "later", "none", "none-2", "shadow"]


def test_the_longest_cached_prefix_goes_first_among_those_of_one_age() -> None:
    names = [f"g{at}" for at in range(AGE_BUCKET + 2)]
    queue = queue_of(*(Request(name, [1]) for name in names))
    assert drain(queue, {"g3": 5, "g5": 9, names[-1]: 99})[:3] == ["g5", "g3", "g0"]
    assert LOOKAHEAD > 5
    queue = queue_of(Request("urgent", [1], priority=1), Request("cached", [1]))
    assert drain(queue, {"cached": 50}) == ["urgent", "cached"]


def test_within_a_quantum_priority_goes_across_tenants() -> None:
    for quantum, expected in [(1000, ["b", "a"]), (1, ["a", "b"])]:
        queue = WaitingQueue(counters := VirtualCounters(quantum))
        limits = Limits(1000, 100, 100, ())
        for at, request in enumerate([Request("a", [1], tenant="a"), Request("b", [1], tenant="b", priority=1)]):
            queue.add(admitted(request, limits, arrival=at, drawn_seed=0).waiting[0])
        counters.charge("b", 100, 1.0)
        assert drain(queue) == expected
