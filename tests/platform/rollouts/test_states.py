"""The table of a rollout's states, and the moves between them."""

import itertools

import pytest
from penstock.errors import IllegalTransition
from penstock.rollouts.policy import AB, Policy
from penstock.rollouts.states import START, TRANSITIONS, Move, Position, State, course, move, share

FULL = Policy(ab=AB())
SHORT = Policy(offline=None, shadow=None)
BACK = {Move.PAUSE, Move.ABORT}


def walk(policy: Policy) -> list[Position]:
    position, seen = move(START, Move.START, policy), [START]
    while not position.state.final:
        seen.append(position)
        if position.state is State.PROMOTED:
            break
        position = move(position, Move.PROMOTE, policy)
    return seen


@pytest.mark.parametrize("policy", [FULL, SHORT, Policy(shadow=None), Policy(offline=None)])
def test_promotions_lead_through_every_gate_of_the_policy(policy: Policy) -> None:
    assert tuple(walk(policy)) == course(policy)


def test_the_full_course() -> None:
    titles = [position.title for position in course(FULL)]
    steps = [f"canary step {step}" for step in (1, 2, 3, 4)]
    assert titles == ["registered", "offline", "shadow", *steps, "ab", "promoted"]
    assert [position.title for position in course(SHORT)] == ["registered", *steps, "promoted"]


@pytest.mark.parametrize(
    ("state", "end"),
    [
        (State.OFFLINE, State.REJECTED),
        (State.SHADOW, State.REJECTED),
        (State.CANARY, State.ROLLED_BACK),
        (State.AB, State.ROLLED_BACK),
        (State.PROMOTED, State.ROLLED_BACK),
    ],
)
def test_harm_rejects_what_has_not_served_and_rolls_back_what_has(state: State, end: State) -> None:
    assert move(Position(state), Move.ROLLBACK, FULL).state is end


@pytest.mark.parametrize("position", course(FULL)[:-1])
def test_a_paused_rollout_goes_back_to_where_it_was(position: Position) -> None:
    paused = move(position, Move.PAUSE, FULL)
    assert paused.state is State.PAUSED
    assert share(paused, FULL) == 0.0
    assert move(paused, Move.RESUME, FULL) == position
    assert move(paused, Move.ABORT, FULL) == Position(State.ABORTED)
    for refused in (Move.PROMOTE, Move.ROLLBACK, Move.PAUSE, Move.START):
        with pytest.raises(IllegalTransition, match=f"paused takes no {refused}"):
            move(paused, refused, FULL)


def test_every_move_from_everywhere_is_in_the_table_or_refused() -> None:
    places = [
        Position(state, step, State.CANARY if state is State.PAUSED else None) for state in State for step in (0, 3)
    ]
    led = set()
    for position, how in itertools.product(places, Move):
        try:
            reached = move(position, how, FULL)
        except IllegalTransition:
            continue
        assert reached.state in TRANSITIONS[position.state]
        led.add((position.state, how))
    gates = {State.OFFLINE, State.SHADOW, State.CANARY, State.AB}
    assert {state for state, how in led if how is Move.PROMOTE} == gates
    assert {state for state, how in led if how is Move.ROLLBACK} == gates | {State.PROMOTED}
    assert {state for state, how in led if how is Move.PAUSE} == gates | {State.REGISTERED}
    assert {state for state, how in led if how is Move.ABORT} == gates | {State.REGISTERED, State.PAUSED}
    assert {state for state, how in led if how is Move.START} == {State.REGISTERED}


def test_what_has_ended_stays_so() -> None:
    assert {state for state in State if state.final} == {State.REJECTED, State.ROLLED_BACK, State.ABORTED}


def test_only_canary_and_ab_have_shares_until_the_promotion() -> None:
    assert [share(position, FULL) for position in course(FULL)] == [0, 0, 0, 0.01, 0.05, 0.25, 0.5, 0.5, 1]
    assert share(Position(State.ROLLED_BACK), FULL) == 0.0


def test_a_step_that_the_policy_does_not_have_leads_nowhere() -> None:
    with pytest.raises(IllegalTransition):
        move(Position(State.CANARY, 9), Move.PROMOTE, FULL)
