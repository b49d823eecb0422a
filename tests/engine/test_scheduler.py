"""The scheduler alone, with made-up tokens for a model: it ends every request, within budget, in order, on any pool."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock_engine.config import Policy
from penstock_engine.request import Request, SamplingParams, TokenDelta

from tests.engine.driving import check_pages
from tests.engine.house import PAGE, House

REQUESTS = st.lists(
    st.tuples(
        st.lists(st.integers(0, 1), min_size=1, max_size=20),  # two tokens: prompts share beginnings
        st.integers(1, 20),  # max_tokens
        st.integers(0, 12),  # the step at which it comes
        st.booleans(),  # is it aborted some steps later?
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=300, deadline=None)
@given(
    requests=REQUESTS,
    pages=st.integers(10, 30),
    max_running=st.integers(1, 6),
    extra_budget=st.integers(0, 20),
    policy=st.sampled_from(["continuous", "static", "request"]),
    cached=st.booleans(),
    overlap=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_every_request_ends_whatever_the_pool(
    requests: list[tuple[list[int], int, int, bool]],
    pages: int,
    max_running: int,
    extra_budget: int,
    policy: Policy,
    cached: bool,
    overlap: bool,
    seed: int,
) -> None:
    """Ten pages hold the largest request alone and no more, so most pools here force preemption."""
    budget = max_running + extra_budget
    house = House(pages=pages, max_running=max_running, budget=budget, policy=policy, cached=cached, overlap=overlap)
    draw = random.Random(seed)
    got: dict[str, list[TokenDelta]] = {}
    aborted: set[str] = set()
    step = 0
    while house.busy or step <= 12:
        for at, (prompt, max_tokens, comes, _) in enumerate(requests):
            if comes == step:
                house.submit(Request(str(at), prompt, SamplingParams(max_tokens=max_tokens)))
        for at, (_, _, comes, goes) in enumerate(requests):
            if goes and comes + 3 == step and house.abort(str(at)):
                aborted.add(str(at))
                check_pages(house.scheduler, house.allocator, house.cache)
        for delta in house.step(lambda _: draw.randrange(2)):
            got.setdefault(delta.request_id, []).append(delta)
        step += 1
        assert step < 3000, "no end in sight"

    for at, (_, max_tokens, _, _) in enumerate(requests):
        if str(at) not in aborted:
            assert [delta.position for delta in got[str(at)]] == list(range(max_tokens))
            assert [delta.finish_reason for delta in got[str(at)]] == [None] * (max_tokens - 1) + ["length"]
    assert house.allocator.free_count + house.cache.evictable_count == pages


def order_of_first_tokens(house: House) -> list[str]:
    seen: list[str] = []
    while house.busy:
        seen += [delta.request_id for delta in house.step() if delta.position == 0]
    return seen


def test_class_then_priority_then_age() -> None:
    house = House(pages=40, max_running=1)
    for name, request_class, priority in [
        ("shadow", "shadow", 9),
        ("batch-1", "batch", 0),
        ("batch-2", "batch", 0),
        ("batch-high", "batch", 5),
        ("interactive", "interactive", 0),
    ]:
        house.submit(
            Request(name, [1], SamplingParams(max_tokens=2), priority=priority, request_class=request_class)  # type: ignore[arg-type]
        )
    assert order_of_first_tokens(house) == ["interactive", "batch-high", "batch-1", "batch-2", "shadow"]


def test_the_last_in_order_gives_way_and_comes_back_first() -> None:
    house = House(pages=9, max_running=3, budget=40)
    for at, name in enumerate(("first", "second", "third")):
        house.submit(Request(name, [at, 1, 0, 1, 0], SamplingParams(max_tokens=15)))
    house.submit(Request("late", [1], SamplingParams(max_tokens=20)))
    finished: list[str] = []
    while house.busy:
        finished += [delta.request_id for delta in house.step() if delta.finish_reason]
    assert house.scheduler.preemptions > 0
    assert finished == ["first", "second", "third", "late"]


def test_decoding_goes_on_while_a_long_prompt_is_prefilled() -> None:
    house = House(pages=40, budget=8)
    house.submit(Request("short", [1], SamplingParams(max_tokens=30)))
    house.step()
    house.submit(Request("long", [0] * 60, SamplingParams(max_tokens=1)))
    steps = [[delta.request_id for delta in house.step()] for _ in range(9)]
    assert steps == [["short"]] * 8 + [["short", "long"]]  # 60 tokens in chunks of 7 beside one decode


def test_free_slots_are_what_could_start_now() -> None:
    house = House(pages=6, max_running=4, budget=64)
    assert house.scheduler.free_slots == 4
    house.submit(Request("a", [0] * 12, SamplingParams(max_tokens=8)))
    assert house.scheduler.free_slots == 3
    house.step()
    assert house.scheduler.free_slots == 3
    house.submit(Request("b", [1] * 12, SamplingParams(max_tokens=8)))  # its pages are not there
    house.step()
    assert house.scheduler.free_slots == 0
    assert house.scheduler.abort("a")
    house.step()
    assert house.scheduler.free_slots == 3


def test_admission_leaves_those_that_run_a_page_to_grow() -> None:
    house = House(pages=5, budget=64)
    house.submit(Request("a", [0] * 7, SamplingParams(max_tokens=4)))
    house.submit(Request("b", [1] * 12, SamplingParams(max_tokens=4)))
    while house.busy:
        house.step()
    assert house.scheduler.preemptions == 0


@pytest.mark.parametrize(("policy", "steps"), [("continuous", 10), ("static", 14), ("request", 18)])
def test_policies_differ_in_when_they_let_in(policy: Policy, steps: int) -> None:
    """One long and four short, two rows: continuous fills the second row, static leaves it empty."""
    house = House(pages=40, max_running=2, policy=policy)
    for at, length in enumerate([10, 2, 2, 2, 2]):
        house.submit(Request(str(at), [at], SamplingParams(max_tokens=length)))
    taken = 0
    while house.busy:
        house.step()
        taken += 1
    assert taken == steps


class TestFollowers:
    """Who begins with what another is computing waits for it, where that saves work."""

    @pytest.mark.parametrize("tail", [1, 2, 3, 5, 30])
    @pytest.mark.parametrize("stem", [250, 248, 3])  # 62 pages and a half, 62 pages, less than one
    def test_a_shared_prefix_is_computed_once(self, stem: int, tail: int) -> None:
        """Sixty-four with tails that have nothing in common run the stem once, and each its own tail."""
        house = House(pages=1000, max_running=16, budget=64)
        shared = [at * at % 4 for at in range(stem)]
        for at in range(64):
            own = [5 + at, *(at % 5 for _ in range(tail - 1))]
            house.submit(Request(str(at), shared + own, SamplingParams(max_tokens=3)))
        while house.busy:
            house.step()
        at_once = 16 if stem < PAGE else 1  # who would save less than a page does not wait for another
        least = stem + 64 * tail + 64 * 2  # the last token of an output is never run
        assert least <= house.scheduler.computed_tokens <= least + (at_once - 1) * stem

    def test_of_many_that_are_the_same_one_runs(self) -> None:
        house = House(pages=200, max_running=64, budget=64)
        for at in range(64):
            house.submit(Request(str(at), [1, 2, 3, 4, 5, 6], SamplingParams(max_tokens=2), tenant=str(at % 2)))
        assert self.begun_by_step(house)[0] == [str(at) for at in range(64)]
        assert house.scheduler.computed_tokens == 6 + 64
        assert house.scheduler.cached_tokens == 63 * 6

    def test_a_part_is_copied_from_one_that_still_runs(self) -> None:
        """The tree has one page of the first prompt; the other four tokens are in a page that it is still filling."""
        house = House(pages=30, budget=64)
        house.submit(Request("first", [1, 2, 3, 4, 1, 2, 3], SamplingParams(max_tokens=20)))
        house.step()
        house.submit(Request("second", [1, 2, 3, 4, 1, 2, 0, 0, 0], SamplingParams(max_tokens=1)))
        house.step()
        assert house.last is not None
        assert house.last.admitted == [("second", 6)]
        assert house.last.extend_lens == [1, 3]

    @pytest.mark.parametrize("length", [3, 6])  # within a page, and beyond one
    @pytest.mark.parametrize("later", [True, False])
    def test_nothing_is_shared_across_namespaces(self, later: bool, length: int) -> None:
        house = House(pages=30, budget=64)
        for name in ("acme", "apex"):
            house.submit(Request(name, [1] * length, SamplingParams(max_tokens=9), namespace=name))
            house.submit(Request(f"{name}-too", [1] * length, SamplingParams(max_tokens=9), namespace=name))
            if later:
                house.step()
        house.step()
        assert house.scheduler.cached_tokens == 2 * length

    def test_without_a_cache_nothing_is_shared(self) -> None:
        house = House(pages=30, budget=64, cached=False)
        for name in ("first", "second"):
            house.submit(Request(name, [1, 2, 3], SamplingParams(max_tokens=9)))
            house.step()
        assert house.scheduler.cached_tokens == 0

    @pytest.mark.parametrize("leaves", [True, False])
    def test_who_was_to_copy_from_one_that_left_computes_instead(self, leaves: bool) -> None:
        house = House(pages=30, budget=64)
        house.submit(Request("first", [1, 2, 3, 4, 1, 2, 3], SamplingParams(max_tokens=20)))
        house.step()
        house.submit(Request("second", [1, 2, 3, 4, 1, 2, 0, 0, 0], SamplingParams(max_tokens=2)))
        house.schedule()  # the step fails before it copies
        if leaves:
            assert house.scheduler.abort("first")
            house.pool.wipe(house.allocator._free)
        house.check()
        house.step()
        assert house.last is not None
        assert house.last.extend_lens[-1] == (5 if leaves else 3)
        assert house.scheduler.cached_tokens == (4 if leaves else 6)

    def test_a_page_to_copy_from_stays_the_same_when_its_run_of_pages_is_split(self) -> None:
        house = House(pages=30, budget=64)
        house.submit(Request("gone", [1, 2, 3, 4, 0, 0, 0, 0, 1, 1], SamplingParams(max_tokens=1)))
        house.step()
        house.submit(Request("copies", [1, 2, 3, 0, 0], SamplingParams(max_tokens=3), priority=1))
        house.submit(Request("splits", [1, 2, 3, 4, 4, 4], SamplingParams(max_tokens=3)))
        house.step()
        assert house.last is not None
        assert [cached for _, cached in house.last.admitted] == [3, 4]

    def test_twins_of_a_failed_step_run_after_all(self) -> None:
        house = House(pages=30, budget=64)
        house.submit(Request("x", [1, 2, 3, 4, 1, 2], SamplingParams(max_tokens=2, n=4)))
        assert len(house.schedule().twins) == 3
        house.check()
        tokens = Counter(delta.choice for _ in range(4) for delta in house.step())
        assert tokens == Counter(dict.fromkeys(range(4), 2))

    def test_twins_wait_where_their_tails_have_no_page(self) -> None:
        house = House(pages=5, budget=64)
        house.submit(Request("x", [1, 2, 3, 4, 1, 2], SamplingParams(max_tokens=3, n=4)))
        ended = [delta.choice for _ in range(30) for delta in house.step() if delta.finish_reason]
        assert sorted(ended) == [0, 1, 2, 3]

    def test_a_leaders_failure_is_not_its_twins(self) -> None:
        house = House(pages=30, budget=64)
        for name in ("bad", "good"):
            house.submit(Request(name, [1, 2, 3, 4, 1, 2], SamplingParams(max_tokens=2)))
        told = []
        while house.busy:
            told += house.step(finite=lambda each: each.request.id != "bad")
        assert [delta.request_id for delta in told] == ["good", "good"]

    def test_a_leader_that_is_dropped_in_flight_takes_nothing_from_its_twin(self) -> None:
        house = House(pages=30, budget=64, overlap=True)
        house.submit(Request("other", [0], SamplingParams(max_tokens=9)))
        house.step()
        for name in ("leader", "twin"):
            house.submit(Request(name, [1, 2, 3, 4, 1, 2], SamplingParams(max_tokens=2)))
        house.step()
        assert house.flight is not None
        assert len(house.flight.batch.twins) == 1
        assert house.abort("leader")
        told = [(delta.request_id, delta.position) for _ in range(9) for delta in house.step()]
        assert [position for name, position in told if name == "twin"] == [0, 1]
        assert "leader" not in {name for name, _ in told}
        assert not house.busy

    def test_others_are_let_in_past_them(self) -> None:
        house = House(pages=60, max_running=4, budget=100)
        house.submit(Request("leader", [0] * 40, SamplingParams(max_tokens=2)))
        house.submit(Request("follower", [*[0] * 40, 1], SamplingParams(max_tokens=2)))
        house.submit(Request("elsewhere", [0] * 40, SamplingParams(max_tokens=2), namespace="other"))
        house.submit(Request("other", [1] * 3, SamplingParams(max_tokens=2)))
        begun = self.begun_by_step(house)
        assert begun[:2] == [["leader", "elsewhere", "other"], ["follower"]]

    @pytest.mark.parametrize("ends", ["abort", "nan"])
    def test_when_the_leader_leaves_the_next_one_leads(self, ends: str) -> None:
        house = House(pages=60, max_running=4, budget=8)
        for name in ("a", "b", "c"):
            house.submit(Request(name, [0] * 20, SamplingParams(max_tokens=2)))
        house.step()
        assert [each.request.id for each in house.scheduler.running] == ["a"]
        if ends == "abort":
            assert house.scheduler.abort("a")
            assert house.scheduler.abort("b")
            begun = self.begun_by_step(house)
            assert [name for step in begun for name in step] == ["c"]
        else:
            house.step()
            house.step(finite=lambda _: False)
            assert [name for step in self.begun_by_step(house) for name in step] == ["b", "c"]

    @pytest.mark.parametrize(("policy", "cached"), [("static", True), ("continuous", False)])
    def test_nobody_waits_where_that_saves_nothing(self, policy: Policy, cached: bool) -> None:
        house = House(pages=60, max_running=4, budget=64, policy=policy, cached=cached)
        for name in ("a", "b", "c"):
            house.submit(Request(name, [0] * 20, SamplingParams(max_tokens=2)))
        assert self.begun_by_step(house)[0] == ["a", "b", "c"]

    @staticmethod
    def begun_by_step(house: House) -> list[list[str]]:
        steps = []
        while house.busy:
            house.step()
            assert house.last is not None
            steps.append([name for name, _ in house.last.admitted])
        return steps
