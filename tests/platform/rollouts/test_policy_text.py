"""Policies as text: written in full, found again line by line, and compared member by member."""

import pytest
from penstock.errors import ValidationFailed
from penstock.rollouts.policy import AB, Canary, Errors, Policy, Step, read_policy
from penstock.rollouts.policy_text import Change, changes, line_of, written

OTHER = Policy(ab=AB(cost=0.5), shadow=None, errors=Errors(tolerated_ratio=1.5), keep_warm=90)


@pytest.mark.parametrize("policy", [Policy(), OTHER])
def test_what_is_written_is_read_as_the_same_policy(policy: Policy) -> None:
    assert read_policy(written(policy)) == policy


def test_durations_are_written_as_people_say_them() -> None:
    text = written(Policy(keep_warm=90))
    assert "keep_warm: 90s" in text
    assert "timeout: 24h" in text
    assert "timeout: 2d" in text


def test_the_line_of_a_mistake_is_the_members_own() -> None:
    text = "errors: {}\ncanary:\n  steps:\n    - {share: 0.1, error_margin: 0.1, slow_margin: 0.1}\n    - share: 0.7\n"
    with pytest.raises(ValidationFailed) as refused:
        read_policy(text)
    lines = {each["field"]: line_of(text, each["field"]) for each in refused.value.extra["errors"]}
    assert lines == {"canary.steps.1.share": 5, "canary.steps.1.error_margin": 5, "canary.steps.1.slow_margin": 5}
    assert line_of(text, "canary.steps") == 3
    assert line_of(text, "canary.unknown") == 2
    assert line_of("", "canary") is None
    assert line_of("a: [", "a") is None


def test_changes_name_members_and_what_was_left_out_as_a_whole() -> None:
    assert changes(Policy(), Policy()) == []
    told = {change.path: change for change in changes(Policy(), OTHER)}
    assert list(told) == ["shadow", "ab", "errors.tolerated_ratio", "keep_warm"]
    assert told["keep_warm"] == Change("keep_warm", "24h", "90s")
    assert told["ab"].before == "null"
    assert told["ab"].after.startswith("{unit: user, share: 0.5,")
    fewer = Policy(canary=Canary(steps=(Step(share=0.2, error_margin=0.1, slow_margin=0.1),)))
    assert [change.path for change in changes(Policy(), fewer)] == ["canary.steps"]
    stricter = Policy().canary.steps
    moved = Policy(canary=Canary(steps=(stricter[0].model_copy(update={"share": 0.02}), *stricter[1:])))
    assert changes(Policy(), moved) == [Change("canary.steps.0.share", "0.01", "0.02")]
