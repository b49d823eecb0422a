"""Who gets what of a device's memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock_worker.device_memory import MIB, DoesNotFit, Party, fit, split


def party(name: str, share: float = 1.0, *, longest: int = 10, most: int = 10**9, weights: int = 100) -> Party:
    return Party(name, f"{name}:1", weights, workspace=20, page=1, longest=longest, most=most, share=share)


def test_shares_divide_all_there_is() -> None:
    assert split([party("a", 0.75), party("b", 0.25)], 400) == {"a": 300, "b": 100}
    assert split([party("a", 0.0), party("b", 0.0)], 400) == {"a": 200, "b": 200}


def test_a_small_share_is_still_enough_for_the_longest_sequence() -> None:
    assert split([party("a", 0.99), party("b", 0.01, longest=50)], 400) == {"a": 350, "b": 50}


def test_what_is_of_no_use_to_one_is_the_others() -> None:
    assert split([party("a", 0.5, most=30), party("b", 0.5)], 400) == {"a": 30, "b": 370}


@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(1, 500), st.integers(0, 500)), min_size=1, max_size=5),
    st.integers(0, 3000),
)
def test_nobody_is_given_what_another_has(drawn: list[tuple[float, int, int]], kv: int) -> None:
    parties = [
        party(str(number), share, longest=longest, most=longest + more)
        for number, (share, longest, more) in enumerate(drawn)
    ]
    given = split(parties, kv)
    assert sum(given.values()) <= kv
    for each in parties:
        assert min(each.longest, kv // len(parties)) <= given[each.id] <= max(each.most, kv // len(parties))


def test_weights_leave_less_for_k_and_v() -> None:
    assert fit([], party("a"), kv=500, total=1000) == {"a": 500}
    assert fit([party("a")], party("b"), kv=800, total=1000) == {"a": 380, "b": 380}


def test_one_that_is_alone_makes_do_with_less_than_its_longest_sequence() -> None:
    assert fit([], party("a", longest=900), kv=500, total=10_000) == {"a": 500}


def test_what_does_not_fit_is_refused_with_the_arithmetic() -> None:
    others = [party("a", weights=600 * MIB, longest=MIB)]
    assert fit(others, party("b", weights=300 * MIB, longest=MIB), kv=100 * MIB, total=1000 * MIB)
    with pytest.raises(DoesNotFit) as refused:
        fit(others, party("b", weights=500 * MIB, longest=3 * MIB), kv=100 * MIB, total=1000 * MIB)
    assert str(refused.value) == (
        "b:1 does not fit: its weights need 500.0 MiB, its steps 0.0 MiB, and K and V of the longest sequence of each "
        "version 4.0 MiB, 504.0 MiB together; the device has 1,000.0 MiB for engines, of which a:1 (600.0 MiB) keep "
        "600.0 MiB, which leaves 400.0 MiB; give one of them the mode cold or another worker, or use fewer bits, or "
        "set PENSTOCK_ENGINE_MAX_MODEL_LEN or PENSTOCK_WORKER_SLOTS lower"
    )


def test_the_longest_sequences_of_two_must_fit_beside_their_weights() -> None:
    with pytest.raises(DoesNotFit, match="does not fit"):
        fit([party("a", longest=300)], party("b", longest=300), kv=500, total=10_000)


def test_one_that_is_left_no_two_pages_does_not_run() -> None:
    with pytest.raises(DoesNotFit, match=r"which leaves 0\.0 MiB"):
        fit([], party("a"), kv=500, total=121)
    with pytest.raises(DoesNotFit):
        fit([], party("a"), kv=500, total=100)
