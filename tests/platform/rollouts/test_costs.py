"""What a policy costs: made piece by piece, the same whoever makes it, and kept."""

from itertools import chain

import pytest
from penstock.dashboard.cost_picture import cost_page
from penstock.places import Places
from penstock.rollouts import costs
from penstock.rollouts.costs import Cost, End, Outcome
from penstock.rollouts.policy import Canary, Policy, Step
from penstock.rollouts.verdicts import Verdict
from redis import Redis

QUICK = Policy(offline=None, shadow=None, canary=Canary(steps=(Step(share=0.5, error_margin=0.3, slow_margin=0.3),)))


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look makes one piece."""
    monkeypatch.setattr(costs, "_SECONDS_A_LOOK", 0.0)
    monkeypatch.setattr(costs, "PIECES", 2)


@pytest.mark.usefixtures("hurried")
def test_each_look_makes_a_piece_until_all_is_known_and_kept(redis: Redis) -> None:
    places = Places(1)
    found = [costs.look(QUICK, redis, places) for _ in range(8)]
    assert [cost.done for cost in found] == [number / 8 for number in range(1, 9)]  # four kinds, two pieces each
    last = found[-1]
    assert [outcome.kind.name for outcome in last.outcomes] == ["harmless", "errors3", "errors10", "latency"]
    assert {len(outcome.ends) for outcome in last.outcomes} == {10}
    kept = redis.keys("penstock:rehearsed:*")
    assert len(kept) == 1
    assert 0 < redis.ttl(kept[0]) <= 30 * 86400
    redis.delete(*kept)
    again = [costs.look(QUICK, redis, places) for _ in range(8)][-1]
    assert again == last


@pytest.mark.usefixtures("hurried")
def test_who_finds_the_place_taken_is_told_what_is_known(redis: Redis) -> None:
    places = Places(1)
    leave = places.take()
    assert leave is not None
    assert costs.look(QUICK, redis, places).done == 0.0
    leave()
    assert costs.look(QUICK, redis, places).done == 1 / 8
    assert places.taken == 0


def outcome(number: int, *ends: End) -> Outcome:
    return Outcome(costs._KINDS[number], tuple(ends))  # the kinds are the module's own


def test_a_page_tells_harm_and_harmlessness_in_jobs() -> None:
    passes = [End(Verdict.PROMOTE, 9_000 + 10 * number, 900 + number) for number in range(9)]
    harmed = [End(Verdict.ROLLBACK, 400 * number, 4 * number) for number in range(1, 10)]
    cost = Cost(
        "abc",
        (outcome(0, *passes, End(Verdict.ROLLBACK, 100, 1)), outcome(2, *harmed), outcome(1)),
        0.5,
    )  # fmt: skip
    page = cost_page(cost)
    assert page.sentence == (
        "A version that fails 10 times as often is taken back after some 2,000 jobs, of which it served 20; a version "
        "that is as good passes after some 9,040 jobs, of which it served 904. The champion is taken to fail 1 % of "
        "its jobs."
    )
    harmless, ten = page.rows
    assert (harmless.ends, harmless.jobs, harmless.served) == ("90 % pass", "9,040", "904")
    assert ten.ends == "100 % are taken back"
    places = list(chain.from_iterable((row.start, row.middle, row.end) for row in (ten, harmless)))
    assert places == sorted(places)
    assert places[0] >= 0
    assert places[-1] <= 100


def test_what_is_undecided_has_no_jobs_to_tell() -> None:
    page = cost_page(Cost("abc", (outcome(2, *[End(Verdict.HOLD, 20_000, 2_000)] * 4),), 1.0))
    assert page.sentence.startswith("A version that fails 10 times as often is undecided after 20,000 jobs.")
    assert (page.rows[0].ends, page.rows[0].jobs) == ("100 % are undecided", "–")
    assert cost_page(Cost("abc", (outcome(0),), 0.0)).sentence == ""
