"""The policy document: what it takes, what it says of mistakes, and what makes it another version."""

import re

import pytest
from penstock.errors import InvalidJson, ValidationFailed
from penstock.rollouts.assignment import Unit
from penstock.rollouts.policy import AB, OnTimeout, Policy, StartedJobs, read_policy

from tests.conftest import ROOT


def documented(nth: int) -> str:
    return re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/rollouts.md").read_text(), re.DOTALL)[nth]


def test_an_empty_document_is_the_default_policy() -> None:
    assert read_policy("") == read_policy("{}") == Policy()


def test_the_documented_policy_is_the_default_one_in_full() -> None:
    text = documented(0)
    assert read_policy(text) == Policy(ab=AB())
    members = set(re.findall(r"^ *(?:- )?([a-z_]+):", text, re.MULTILINE)) | set(re.findall(r"[{,] ?([a-z_]+):", text))
    schema = str(read_policy(text).model_dump(mode="json"))
    assert members == set(re.findall(r"'([a-z_]+)':", schema)), "every member is shown"


def test_what_is_written_is_read_again() -> None:
    policy = read_policy("canary: {unit: user}\nlatency: null\nstarted_jobs: restart\nkeep_warm: 2d")
    assert policy.canary.unit is Unit.USER
    assert policy.latency is None
    assert policy.started_jobs is StartedJobs.RESTART
    assert policy.keep_warm == 2 * 86400
    assert read_policy(policy.model_dump_json()) == policy


def test_the_version_follows_what_is_meant_and_not_how_it_is_written() -> None:
    hours = read_policy("shadow: {timeout: 48h, sampling: 0.05}")
    seconds = read_policy('{"shadow": {"sampling": 5.0e-2, "timeout": 172800}}')
    assert hours.version == seconds.version == Policy().version
    assert re.fullmatch("[0-9a-f]{12}", hours.version)
    others = ["shadow: {timeout: 47h}", "ab: {}", "offline: null", "alphas: {rollback: 0.04}", "canary: {unit: tenant}"]
    assert len({read_policy(text).version for text in others} | {hours.version}) == 6


def steps(*shares: float) -> str:
    """A policy of these."""
    margins = "error_margin: 0.1, slow_margin: 0.1"
    return f"canary: {{steps: [{', '.join(f'{{share: {share}, {margins}}}' for share in shares)}]}}"


@pytest.mark.parametrize(
    ("text", "field", "says"),
    [
        (steps(0.1, 0.7), "canary.steps.1.share", "0.5 or less"),
        (steps(0.2, 0.1), "canary.steps", "larger share than the one before"),
        ("canary: {steps: []}", "canary.steps", "at least 1"),
        ("canary: {steps: [{share: 0.1, slow_margin: 0.1}]}", "canary.steps.0.error_margin", "is missing"),
        ("canary: null", "canary", "an object"),
        ("shadow: {timeout: 3 weeks}", "shadow.timeout", "45s, 30m, 12h or 7d"),
        ("shadow: {timeout: 0s}", "shadow.timeout", "1 or more"),
        ("shadow: {free_running: 1.5}", "shadow.free_running", "1.0 or less"),
        ("shadow: {sampling: '0.1'}", "shadow.sampling", "wrong type (a string)"),
        ("shadow: {on_timeout: promote}", "shadow.on_timeout", "'hold' or 'rollback'"),
        ("alphas: {promotion: 0}", "alphas.promotion", "more than 0"),
        ("alphas: {rollback: 0.9}", "alphas.rollback", "0.2 or less"),
        ("offline: {four_bits: {mean_kld: 0.1}}", "offline.four_bits.same_top", "is missing"),
        ("ab: {unit: job}", "ab.unit", "user or tenant"),
        ("latency: {prompt_tokens: [4096, 512]}", "latency.prompt_tokens", "ascending"),
        ("guardrails: {}", "guardrails", "not a known field"),
        ("shadow: {sampling: 0.1}\nshadow: {sampling: 0.2}", "shadow", "more than once in what begins in line 1"),
        ("[1, 2]", None, "the policy: has the wrong type (an array)"),
    ],
)
def test_a_mistake_is_named_by_its_path_with_what_would_be_right(text: str, field: str | None, says: str) -> None:
    with pytest.raises(ValidationFailed) as error:
        read_policy(text)
    assert error.value.field == field
    assert says in error.value.message


@pytest.mark.parametrize(
    "text", ["canary: [", "shadow: 2026-01-01", "&a [*a]", "a: !!python/object:os.system {}", "a: .nan"]
)
def test_what_is_no_document_is_refused(text: str) -> None:
    with pytest.raises((InvalidJson, ValidationFailed), match=r"the policy|a: "):
        read_policy(text)


def test_few_bits_have_wider_limits() -> None:
    offline = Policy().offline
    assert offline
    assert [offline.limits(bits).mean_kld for bits in (16, 8, 4.5, 4, 3)] == [0.005, 0.005, 0.005, 0.05, 0.05]
    eight, four = offline.limits(8), offline.limits(4)
    assert (eight.same_top, eight.perplexity_increase, eight.flips) == (0.98, 0.005, 0.02)
    assert (four.same_top, four.perplexity_increase, four.flips) == (0.92, 0.03, 0.06)


def test_strata_of_latency_are_by_length_of_prompt() -> None:
    latency = Policy().latency
    assert latency
    assert latency.strata == ("<512", "<4096", "rest")
    assert [latency.stratum(tokens) for tokens in (0, 511, 512, 4095, 4096)] == [
        "<512",
        "<512",
        "<4096",
        "<4096",
        "rest",
    ]


def test_nothing_is_decided_by_time_unless_the_policy_says_so() -> None:
    policy = Policy()
    assert {step.on_timeout for step in policy.canary.steps} == {OnTimeout.HOLD}
