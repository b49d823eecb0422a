"""Who serves while an alias moves: no gap, and no traffic for a version that cannot be loaded."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.routing.succession import Candidate, Readiness, next_route

READY, LOADING, FAILED, UNKNOWN = Readiness.READY, Readiness.LOADING, Readiness.FAILED, Readiness.UNKNOWN
every_readiness = st.sampled_from(Readiness)


def old(readiness: Readiness = READY) -> Candidate:
    return Candidate("old", "1", readiness, proven=True)


def new(readiness: Readiness = UNKNOWN, *, proven: bool = False) -> Candidate:
    return Candidate("new", "2", readiness, proven, error="tokenizer.json is missing" if readiness is FAILED else None)


def test_the_first_version_serves_at_once() -> None:
    route = next_route(None, new(), None)
    assert (route.serving, route.incoming) == ("new", None)


@pytest.mark.parametrize("readiness", [UNKNOWN, LOADING])
def test_the_old_version_serves_until_the_new_one_is_ready(readiness: Readiness) -> None:
    for incoming in (None, "new"):
        route = next_route(old(), new(readiness), incoming)
        assert (route.serving, route.incoming) == ("old", "new")
    assert route.reason == "version 2 takes over once a worker has loaded it; version 1 serves until then"


@pytest.mark.parametrize("readiness", list(Readiness))
def test_a_ready_version_takes_over(readiness: Readiness) -> None:
    for incoming in (None, "new"):
        route = next_route(old(readiness), new(READY), incoming)
        assert (route.serving, route.incoming) == ("new", None)
    assert route.reason == "the alias champion names version 2"


@pytest.mark.parametrize("readiness", [LOADING, FAILED, UNKNOWN])
def test_where_nothing_ready_is_given_up_the_new_version_serves_at_once(readiness: Readiness) -> None:
    assert next_route(old(readiness), new(), None).serving == "new"


@pytest.mark.parametrize("current", [old(READY), old(LOADING), old(UNKNOWN)])
def test_one_that_cannot_be_loaded_never_takes_over_and_says_why(current: Candidate) -> None:
    for incoming in (None, "new"):
        route = next_route(current, new(FAILED), incoming)
        assert (route.serving, route.incoming) == ("old", "new")
        assert "version 2 cannot be loaded (tokenizer.json is missing)" in route.reason


def test_a_first_version_that_turns_out_not_to_load_is_taken_out_until_it_does() -> None:
    route = next_route(new(FAILED), new(FAILED), None)
    assert (route.serving, route.incoming) == (None, "new")
    assert "cannot be loaded (tokenizer.json is missing)" in route.reason
    for readiness in (FAILED, LOADING, UNKNOWN):
        assert next_route(None, new(readiness), "new").serving is None
    assert next_route(None, new(READY), "new").serving == "new"


def test_a_proven_champion_keeps_its_jobs_while_it_is_loaded_again() -> None:
    for readiness in Readiness:
        assert next_route(old(readiness), old(readiness), None).serving == "old"


def test_one_that_was_waited_for_does_not_slip_in_while_the_old_one_restarts() -> None:
    assert next_route(old(LOADING), new(LOADING), "new").serving == "old"


@given(current=every_readiness, wanted=every_readiness, proven=st.booleans(), waited=st.booleans())
def test_jobs_never_move_from_a_ready_version_to_one_that_is_not(
    current: Readiness, wanted: Readiness, proven: bool, waited: bool
) -> None:
    route = next_route(old(current), new(wanted, proven=proven), "new" if waited else None)
    if current is READY and wanted is not READY:
        assert route.serving == "old"
    if wanted is FAILED:
        assert route.serving == "old"
    assert (route.serving == "new") == (route.incoming is None)
