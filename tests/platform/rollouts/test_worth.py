"""A better answer has its price: what a second of a device is worth changes verdicts, and says where."""

from penstock.rollouts.evidence import Evidence
from penstock.rollouts.policy import AB, Policy
from penstock.rollouts.states import Position, State
from penstock.rollouts.statistics import Sample, Tally
from penstock.rollouts.verdicts import Reason, Verdict, judge
from penstock.rollouts.worth import Trades, turning_costs, weighed, with_trades


def test_equal_pairs_are_kept_as_one_to_two_digits_of_time() -> None:
    trades = with_trades((), [0.5, 0.5, -0.25], [1.234, 1.2, 0.0])
    assert trades == ((-250, 0, 1), (500, 1200, 2))
    assert with_trades(trades, [0.5], [1.249]) == ((-250, 0, 1), (500, 1200, 3))


def test_a_second_costs_points_and_a_pair_counts_up_to_one() -> None:
    trades: Trades = ((-500, -1000, 1), (0, 2000, 3), (500, 0, 1))
    assert weighed(trades, 0.0) == Sample().plus(-0.5, 0, 0, 0, 0.5)
    assert weighed(trades, 0.25) == Sample().plus(-0.25, -0.5, -0.5, -0.5, 0.5)
    assert weighed(trades, 10.0) == Sample().plus(1, -1, -1, -1, 0.5)


def feedback(cost: float, trades: Trades) -> Reason:
    quality = Sample(tuple(sorted((score, count) for score, _, count in trades)))
    units = Tally().plus(0.5, 1000, 1000)
    evidence = Evidence(units=units, judged=units, pairs={"feedback": quality}, trades=trades)
    found = judge(Position(State.AB), Policy(latency=None, ab=AB(cost=cost)), evidence)
    return next(reason for reason in found.reasons if reason.name == "feedback")


def test_a_cheaper_version_that_is_a_little_worse_passes_once_seconds_are_worth_enough() -> None:
    trades: Trades = ((100, 1000, 1000),)  # worse by a tenth of a point, and quicker by a second
    free = feedback(0.0, trades)
    assert free.verdict is Verdict.ROLLBACK
    assert "turns_below" not in free.figures
    turn = free.figures["turns_above"]
    assert 0.0 < turn < 0.1
    assert feedback(turn * 1.001, trades).verdict is not Verdict.ROLLBACK
    assert feedback(turn * 0.999, trades).verdict is Verdict.ROLLBACK
    dear = feedback(0.5, trades)
    assert dear.verdict is Verdict.PROMOTE
    assert turn < dear.figures["turns_below"] < 0.5
    assert "turns_above" not in dear.figures


def test_where_both_take_as_long_no_price_of_time_matters() -> None:
    assert feedback(0.0, ((0, 0, 1000),)).figures.keys().isdisjoint({"turns_above", "turns_below"})
    assert turning_costs((), 0.0, lambda cost: cost) == {}
