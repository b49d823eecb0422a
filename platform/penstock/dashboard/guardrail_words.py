"""What a gate's judgement says, for people: each guardrail's and condition's part in it as a sentence with units.

Made of the figures that stand with the judgement and of the gate's evidence; the API has these figures as they are.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from penstock.rollouts.policy import Policy
from penstock.rollouts.states import State

_HOUR, _DAY = 3600, 86400
_TITLES: Final = {
    "errors": "Failures", "latency": "Slow jobs", "feedback": "Feedback", "mean_kld": "Divergence",
    "disagreement": "Other choices", "same_top": "Same choices", "perplexity_increase": "Perplexity", "flips": "Flips",
    "memory": "Memory", "speed": "Speed", "tokens": "Enough text", "offline": "Evaluation", "minimum": "Enough seen",
    "sample ratio": "Planned shares", "sample ratio of feedback": "Who gives feedback", "lost": "Not scored",
    "free errors": "Its own answers", "breaker": "Crashes", "timeout": "Time",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Context:
    """One reason of a judgement, where it was given: the gate's document, and the rollout's policy and unit."""

    reason: Mapping[str, Any]
    gate: Mapping[str, Any]
    policy: Policy
    unit: str

    @property
    def name(self) -> str:
        return str(self.reason["name"])

    @property
    def figures(self) -> Mapping[str, float]:
        figures: Mapping[str, float] = self.reason["figures"]
        return figures

    @property
    def evidence(self) -> Mapping[str, Any]:
        evidence: Mapping[str, Any] = self.gate["evidence"]
        return evidence

    @property
    def compared(self) -> str:
        """How many units stand behind an interval: `109 pairs of jobs`, `142 jobs`."""
        count = int(self.figures["units"])
        if self.gate["status"] == State.SHADOW:
            return counted(count, "job")
        return f"{count:,} pair{'' if count == 1 else 's'} of {self.unit}s"


def title(name: str) -> str:
    """What a guardrail is called."""
    return _TITLES.get(name, name[:1].upper() + name[1:])


def sentence(context: Context) -> str:
    """Why it passes, holds or stops the rollout. What has no words of its own is told as the judgement told it."""
    teller = _TELLERS[_kind(context.figures)].get(context.name) or _CONDITIONS.get(context.name)
    if teller is not None:
        return teller(context)
    text = str(context.reason["text"])
    return f"{text[:1].upper()}{text[1:]}."


def _kind(figures: Mapping[str, float]) -> str:
    """The figure by which reasons of one kind are known: an interval's end, a limit, or what is proven."""
    return next((name for name in ("low", "limit", "log_evidence") if name in figures), "")


# Figures


def figure(value: float) -> str:
    """As many digits as tell something: `0.042`, `4.9`, `25`."""
    size = abs(value)
    text = f"{value:.2g}" if size < 1 else f"{value:.1f}" if size < 10 else f"{value:,.0f}"
    return text.removesuffix(".0")


def percent(share: float) -> str:
    """`4.9 %`; near the whole with the digits that keep it from it."""
    rest = 1 - share
    return f"{100 - float(figure(rest * 100)):g} %" if 0 < rest < 0.1 else f"{figure(share * 100)} %"


def points(difference: float) -> str:
    """A difference of shares without its sign: `4.9 points`."""
    told = figure(abs(difference) * 100)
    return f"{told} point{'' if told == '1' else 's'}"


def counted(count: int, noun: str) -> str:
    """`1 job`, `12,000 jobs`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def lasting(seconds: float) -> str:
    """`45 seconds`, `36 hours`, `14 days`: a policy's durations, in the largest unit that tells them well."""
    for least, size, noun in ((2 * _DAY, _DAY, "day"), (_HOUR, _HOUR, "hour"), (60, 60, "minute")):
        if seconds >= least:
            told = figure(seconds / size)
            return f"{told} {noun}{'' if told == '1' else 's'}"
    return counted(int(seconds), "second")


def between(low: float, high: float, less: str, more: str) -> str:
    """An interval of differences in points: `between 4.9 points less and 6.5 points more`."""
    if low >= 0:
        return f"between {figure(low * 100)} and {points(high)} {more}"
    if high <= 0:
        return f"between {figure(-high * 100)} and {points(low)} {less}"
    return f"between {points(low)} {less} and {points(high)} {more}"


# Intervals


def _allowance(context: Context, most: str) -> str:
    """The margin: what is allowed, once it was proven that it is kept; before, what has to be proven."""
    if context.reason["verdict"] == "promote":
        return f"up to {most} are allowed"
    return f"it must be proven to be under {most}"


def _errors(context: Context) -> str:
    figures = context.figures
    where = between(figures["low"], figures["high"], "less", "more")
    most = _allowance(context, f"{points(figures['margin'])} more")
    return f"The candidate fails {where} often than the champion ({context.compared}); {most}."


def _slow(context: Context) -> str:
    figures = context.figures
    where = between(figures["low"], figures["high"], "less", "more")
    most = _allowance(context, f"{points(figures['margin'])} more")
    latency = context.policy.latency
    beyond = f" Slow is what takes longer than {latency.quantile * 100:g} % of the champion's jobs." if latency else ""
    return f"The candidate is slow {where} often than the champion ({context.compared}); {most}.{beyond}"


def _feedback(context: Context) -> str:
    figures, ab = context.figures, context.policy.ab
    where = between(figures["low"], figures["high"], "higher", "lower")
    most = _allowance(context, f"{points(figures['margin'])} lower")
    scores = "Scores, less what devices cost," if ab and ab.cost else "Scores"
    told = f"{scores} are {where} than the champion's ({context.compared}); {most}."
    return told + "".join(
        f" {side} {figure(figures[f'turns_{key}'])} points of score a device-second the verdict would be another."
        for key, side in (("below", "Under"), ("above", "Beyond"))
        if f"turns_{key}" in figures
    )


def _divergence(context: Context) -> str:
    figures = context.figures
    where = f"{figure(figures['low'])} to {figure(figures['high'])} nats"
    most = _allowance(context, f"{figure(figures['margin'])} nats")
    return f"Answers diverge by {where} in the mean ({context.compared}); {most}."


def _choices(context: Context) -> str:
    figures = context.figures
    where = f"{figure(figures['low'] * 100)} to {percent(figures['high'])}"
    most = _allowance(context, percent(figures["margin"]))
    return f"At {where} of an answer's tokens the candidate would have chosen another ({context.compared}); {most}."


# Harm, and conditions


def _more_failures(context: Context) -> str:
    counts = [context.evidence["arms"][arm]["failures"]["count"] for arm in ("candidate", "champion")]
    return _more_than_its_share(context, "failures", *counts)


def _more_slow_jobs(context: Context) -> str:
    counts = [context.evidence["arms"][arm]["slow"] for arm in ("candidate", "champion")]
    return _more_than_its_share(context, "slow jobs", *counts)


def _more_than_its_share(context: Context, what: str, ours: int, theirs: int) -> str:
    share = context.evidence["sample_ratio"]["seen"]
    served = f", which served {percent(share)} of the {context.unit}s" if share is not None else ""
    return f"{ours:,} of the {ours + theirs:,} {what} are the candidate's{served}: more than chance explains."


def _diverges(context: Context) -> str:
    seen, shadow = context.evidence["scored"]["mean_kld"], context.policy.shadow
    most = f"{figure(shadow.mean_kld)} nats" if shadow else "what"
    return (
        f"Answers diverge by {figure(seen['mean'])} nats in the mean ({counted(seen['units'], 'job')}), "
        f"beyond doubt more than the {most} that are allowed."
    )


def _chooses_otherwise(context: Context) -> str:
    seen, shadow = context.evidence["scored"]["disagreement"], context.policy.shadow
    most = percent(shadow.disagreement) if shadow else "what"
    return (
        f"At {percent(seen['mean'])} of an answer's tokens the candidate would have chosen another "
        f"({counted(seen['units'], 'job')}), beyond doubt more than the {most} that are allowed."
    )


def _scores_lower(context: Context) -> str:
    seen, ab = context.evidence["pairs"]["feedback"], context.policy.ab
    most = points(ab.feedback_margin) if ab else "what"
    if ab and ab.cost:
        return f"Scores, less what devices cost, are beyond doubt more than {most} lower than the champion's."
    return f"Scores are {points(seen['mean'])} lower than the champion's, beyond doubt more than the {most} allowed."


def _minimum(context: Context) -> str:
    units, minimum = int(context.figures["units"]), int(context.figures["minimum"])
    seen = {State.SHADOW: "answers were scored", State.AB: f"{context.unit}s of the candidate gave feedback"}
    what = seen.get(State(context.gate["status"]), f"{context.unit}s of the candidate were seen")
    return f"{units:,} {what}; {minimum:,} are wanted at least."


def _sample_ratio(context: Context) -> str:
    arms, ratio = context.evidence["arms"], context.evidence["sample_ratio"]
    total = arms["candidate"]["units"] + arms["champion"]["units"]
    planned = f" where {percent(ratio['planned'])} were planned" if ratio["planned"] is not None else ""
    seen = f"{arms['candidate']['units']:,} of {total:,} {context.unit}s are the candidate's"
    return f"{seen}{planned}: some are lost, or went astray, and nothing can be compared."


def _sample_ratio_of_feedback(context: Context) -> str:
    judged = [context.evidence["arms"][arm]["judged"] for arm in ("candidate", "champion")]
    return (
        f"{judged[0]:,} of the {sum(judged):,} {context.unit}s that gave feedback are the candidate's, which its share "
        "does not explain: one version makes people fall silent, and scores alone do not show it."
    )


def _timeout(context: Context) -> str:
    gate = _gate_policy(context)
    within = f" within {lasting(gate.timeout)}" if gate is not None else ""
    after = "so the policy ends it" if context.reason["verdict"] == "rollback" else "so it is for an operator to decide"
    return f"Nothing was proven{within}, {after}."


def _gate_policy(context: Context) -> Any:
    """The part of the policy that says how long the gate may take."""
    state, policy = context.gate["status"], context.policy
    if state == State.CANARY:
        return policy.canary.steps[context.gate["step"]]
    return {State.SHADOW: policy.shadow, State.AB: policy.ab}.get(state)


def _breaker(context: Context) -> str:
    crashes = counted(context.evidence["crashes"], "time")
    return f"The candidate's engine crashed {crashes}; the policy stops at {context.policy.breaker.crashes}."


def _lost(context: Context) -> str:
    lost = int(context.figures["lost"])
    total = lost + int(context.figures["scored"])
    return f"{lost:,} of {total:,} sampled answers could not be scored, and they may be the worst."


def _free_errors(context: Context) -> str:
    free = context.evidence["free"]
    ours, theirs = free["candidate"]["failures"], free["champion"]["failures"]
    return (
        f"Of {free['jobs']:,} requests that both answered, the candidate failed {ours:,} and the champion {theirs:,}: "
        "beyond doubt more, so it waits for an operator."
    )


def _few_tokens(context: Context) -> str:
    compared, offline = context.evidence["offline"], context.policy.offline
    wanted = f"; {offline.minimum_tokens:,} are wanted at least" if offline else ""
    return f"{compared['tokens']:,} tokens were compared{wanted}."


# Limits


def _limited(told: Callable[[float], str], says: str, bound: str = "at most") -> Callable[[Context], str]:
    """A figure of the held-out set beside its limit, and beside what the reference is from itself."""

    def teller(context: Context) -> str:
        figures = context.figures
        noise = f" The reference beside itself: {told(figures['noise'])}." if "noise" in figures else ""
        text = says.format(value=told(figures["value"]))
        if context.reason["verdict"] == "hold":
            return f"{text} The reference differs from itself by more than the limit, so nothing can be told.{noise}"
        return f"{text} The limit is {bound} {told(figures['limit'])}.{noise}"

    return teller


def _perplexity(context: Context) -> str:
    value = context.figures["value"]
    says = f"The text is {percent(abs(value))} {'less' if value < 0 else 'more'} perplexing to the candidate."
    return _limited(percent, says)(context)


def _nats(value: float) -> str:
    return f"{figure(value)} nats"


def _times(value: float) -> str:
    return f"{figure(value)} times"


_INTERVALS: Final[Mapping[str, Callable[[Context], str]]] = {
    "errors": _errors,
    "latency": _slow,
    "feedback": _feedback,
    "mean_kld": _divergence,
    "disagreement": _choices,
}
_LIMITS: Final[Mapping[str, Callable[[Context], str]]] = {
    "mean_kld": _limited(_nats, "What the versions expect next diverges by {value} a token."),
    "same_top": _limited(percent, "Both would choose the same token at {value} of the positions.", "at least"),
    "perplexity_increase": _perplexity,
    "flips": _limited(percent, "{value} of the answers changed between right and wrong."),
    "memory": _limited(percent, "The weights take {value} of the reference's memory."),
    "speed": _limited(_times, "It reads {value} as fast as the reference.", "at least"),
}
_HARM: Final[Mapping[str, Callable[[Context], str]]] = {
    "errors": _more_failures,
    "latency": _more_slow_jobs,
    "feedback": _scores_lower,
    "mean_kld": _diverges,
    "disagreement": _chooses_otherwise,
}
_CONDITIONS: Final[Mapping[str, Callable[[Context], str]]] = {
    "minimum": _minimum,
    "sample ratio": _sample_ratio,
    "sample ratio of feedback": _sample_ratio_of_feedback,
    "timeout": _timeout,
    "breaker": _breaker,
    "lost": _lost,
    "free errors": _free_errors,
    "tokens": _few_tokens,
}
_TELLERS: Final = {"low": _INTERVALS, "limit": _LIMITS, "log_evidence": _HARM, "": _CONDITIONS}
