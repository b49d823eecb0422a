"""Where a deployment should be, and what of a device: decided alike by every worker."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.deployments.placement import EVERYWHERE, Desired, WorkerPlace, kv_shares, places_for, why_nowhere


def worker(name: str, **others: Any) -> WorkerPlace:
    return WorkerPlace(name, hostname=f"host-{name}", **others)


def chosen(desired: Desired, *workers: WorkerPlace) -> set[str]:
    return {each.id for each in places_for("dep", "tiny", desired, workers)}


def test_by_default_it_is_everywhere_but_where_a_worker_is_for_other_models_or_ends() -> None:
    workers = (worker("a"), worker("b", models=["other"]), worker("c", models=["tiny"]), worker("d", draining=True))
    assert chosen(EVERYWHERE, *workers) == {"a", "c"}


def test_workers_are_named_by_host_or_label() -> None:
    workers = (worker("a"), worker("b", labels=["h200", "east"]), worker("c", labels=["east"]))
    assert chosen(Desired(workers=("host-a", "h200")), *workers) == {"a", "b"}
    assert chosen(Desired(workers=("east",)), *workers) == {"b", "c"}


def test_of_too_many_those_that_have_it_stay() -> None:
    having = (worker("c", hosts={"dep": "loading"}), worker("d", hosts={"dep": "ready"}))
    assert chosen(Desired(replicas=2), worker("a"), *having, worker("b")) == {"c", "d"}
    assert chosen(Desired(replicas=1), worker("a"), *having, worker("b")) == {"d"}
    assert chosen(Desired(replicas=0), *having) == set()


def test_where_it_failed_it_is_tried_on_and_another_takes_its_place() -> None:
    failing = worker("a", hosts={"dep": "failed"})
    assert chosen(Desired(replicas=1), failing, worker("b", hosts={"dep": "ready"}), worker("c")) == {"a", "b"}
    assert chosen(Desired(replicas=1), failing) == {"a"}
    assert chosen(Desired(replicas=0), failing) == set()


@given(st.integers(1, 6), st.integers(0, 7), st.integers(0, 5))
def test_every_worker_finds_the_same_and_few_move_when_one_leaves(count: int, replicas: int, gone: int) -> None:
    workers = [worker(str(number)) for number in range(count)]
    before = chosen(Desired(replicas=replicas), *workers)
    assert before == chosen(Desired(replicas=replicas), *reversed(workers))
    assert len(before) == min(replicas, count)
    after = chosen(Desired(replicas=replicas), *[each for each in workers if each.id != str(gone)])
    assert before - {str(gone)} <= after


@pytest.mark.parametrize(
    ("desired", "workers", "why"),
    [
        (EVERYWHERE, [], "no worker is live"),
        (EVERYWHERE, [worker("a", models=["other"])], "no live worker is set up for tiny (PENSTOCK_WORKER_MODELS)"),
        (
            Desired(workers=("h200", "big")),
            [worker("a")],
            "no live worker has the name or label h200 or big, where it is wanted",
        ),
        (Desired(replicas=0), [worker("a")], "it is wanted on no worker (replicas is 0)"),
        (EVERYWHERE, [worker("a", draining=True)], "every worker that it is wanted on is about to stop"),
        (EVERYWHERE, [worker("a")], None),
    ],
)
def test_why_it_is_nowhere(desired: Desired, workers: list[WorkerPlace], why: str | None) -> None:
    assert why_nowhere("tiny", desired, workers) == why


def test_k_and_v_are_divided_by_what_was_asked_for_then_by_traffic() -> None:
    assert kv_shares({"a": None}, {}) == {"a": 1.0}
    assert kv_shares({"a": None, "b": None}, {}) == {"a": 0.5, "b": 0.5}
    assert kv_shares({"champion": None, "candidate": None}, {"champion": 0.95, "candidate": 0.05}) == {
        "champion": pytest.approx(0.95),
        "candidate": pytest.approx(0.05),
    }
    assert kv_shares({"a": 0.6, "b": None, "c": None}, {"b": 1.0, "c": 3.0}) == pytest.approx(
        {"a": 0.6, "b": 0.1, "c": 0.3}
    )
    assert kv_shares({"a": 0.9, "b": 0.9}, {}) == pytest.approx({"a": 0.5, "b": 0.5})
    assert kv_shares({"a": 0.2}, {}) == pytest.approx({"a": 1.0})
    assert kv_shares({"a": None, "b": None}, {"a": 0.0, "b": 0.0}) == {"a": 0.5, "b": 0.5}
    assert kv_shares({}, {}) == {}


@given(st.dictionaries(st.text(max_size=3), st.none() | st.floats(0.01, 1), min_size=1, max_size=5))
def test_shares_make_a_whole(explicit: dict[str, float | None]) -> None:
    shares = kv_shares(explicit, {})
    assert shares.keys() == explicit.keys()
    assert sum(shares.values()) == pytest.approx(1.0)
