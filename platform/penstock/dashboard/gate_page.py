"""One gate of a rollout as its page shows it: what was seen, how each guardrail stands and why, and its charts."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from penstock.dashboard.gate_pictures import says, shown
from penstock.dashboard.guardrail_bars import Bar, bar
from penstock.dashboard.guardrail_words import Context, figure, percent, sentence, title
from penstock.errors import NotFound
from penstock.rollouts.policy import Policy
from penstock.rollouts.states import State

Document = Mapping[str, Any]
_VERDICTS: Final = {"promote": "Passes", "hold": "Holds", "rollback": "Stops it"}


@dataclass(frozen=True, slots=True)
class Tile:
    """One figure: its name, itself, what it counts, what is said below it, and whether it is bad."""

    label: str
    value: str
    unit: str | None = None
    hint: str | None = None
    state: str | None = None


@dataclass(frozen=True, slots=True)
class GuardLine:
    """One guardrail or condition: how it stands, and why."""

    title: str
    verdict: str
    says: str
    why: str
    bar: Bar | None
    jobs_needed: int | None


@dataclass(frozen=True, slots=True)
class GatePage:
    """A gate that was judged. `charts` are guardrails by name, title and what their charts show."""

    status: str
    step: int
    title: str
    judged_at: str
    tiles: list[Tile]
    guards: list[GuardLine]
    charts: list[tuple[str, str, str]]


def gate_page(rollout: Document, state: str | None = None, step: int = 0) -> GatePage | None:
    """The gate of that name, or the last that was judged, where there is one.

    Raises `NotFound` for a gate that was named, and not judged.
    """
    gates = rollout["gates"]
    if state is None:
        return _page(rollout, gates[-1]) if gates else None
    return _page(rollout, find_gate(rollout, state, step))


def why_it_ended(rollout: Document) -> str | None:
    """The reason that its last gate's harm was proven by; none where no gate ended it."""
    last = gate_page(rollout)
    return last.guards[0].why if last is not None and last.guards[0].verdict == "rollback" else None


def find_gate(rollout: Document, state: str, step: int) -> Document:
    """The gate's document. Raises `NotFound` for one that was not judged."""
    found: Document | None = next(
        (each for each in rollout["gates"] if (each["status"], each["step"]) == (state, step)), None
    )
    if found is None:
        raise NotFound(f"the rollout has judged no gate {state!r}, step {step}")
    return found


def unit_of(rollout: Document, state: str) -> str:
    """What counts as one in the gate: `job`, `user` or `tenant`."""
    gates: Mapping[str, Document] = {State.CANARY: rollout["policy"]["canary"], State.AB: rollout["policy"]["ab"] or {}}
    return str(gates.get(state, {}).get("unit", "job"))


def _page(rollout: Document, gate: Document) -> GatePage:
    policy = Policy.model_validate(rollout["policy"], strict=False)
    unit = unit_of(rollout, gate["status"])
    contexts = [Context(reason, gate, policy, unit) for reason in gate["judgement"]["reasons"]]
    tiles = [*_verdict(gate), *_TILES[State(gate["status"])](gate["evidence"], unit)]
    charts = [(name, title(name), says(name)) for name in shown(gate)]
    lines = [_line(context) for context in contexts]
    return GatePage(gate["status"], gate["step"], gate["title"], gate["judged_at"], tiles, lines, charts)


def _line(context: Context) -> GuardLine:
    verdict = context.reason["verdict"]
    drawn, needed = bar(context.name, context.figures), context.reason["jobs_needed"]
    return GuardLine(title(context.name), verdict, _VERDICTS[verdict], sentence(context), drawn, needed)


def _verdict(gate: Document) -> Iterator[Tile]:
    judgement = gate["judgement"]
    if judgement["verdict"] == "promote":
        yield Tile("Verdict", "Promote", None, "everything passes")
    elif judgement["verdict"] == "rollback":
        why = "a limit is broken" if gate["status"] == State.OFFLINE else "harm is proven"
        yield Tile("Verdict", "Roll back", None, why, "bad")
    else:
        needed = judgement["jobs_needed"]
        more = f"some {needed:,} jobs more" if needed else "more jobs alone will not do"
        yield Tile("Verdict", "Hold", None, more)


def _offline(evidence: Document, unit: str) -> Iterator[Tile]:  # noqa: ARG001 - as every gate's
    figures = evidence["offline"]
    if figures is None:
        return
    yield Tile("Compared", f"{figures['tokens']:,}", "tokens", f"weights of {figure(figures['bits'])} bits")
    models = figures["models"]
    for name, label in (("memory", "Memory"), ("speed", "Speed")):
        if name in figures["ratios"]:
            ratio = figures["ratios"][name]
            yield Tile(label, percent(ratio) if name == "memory" else f"{figure(ratio)} ×", None, "of the reference's")
    if models and models["candidate"]["accuracy"] is not None:
        ours, theirs = (models[name]["accuracy"] for name in ("candidate", "reference"))
        yield Tile("Right answers", percent(ours), None, f"{percent(theirs)} by the reference")


def _shadow(evidence: Document, unit: str) -> Iterator[Tile]:  # noqa: ARG001 - as every gate's
    scored, lost, free = evidence["scored"].get("mean_kld", {"units": 0}), evidence["lost"], evidence["free"]
    yield Tile("Answers scored", f"{scored['units']:,}", None, f"{lost:,} could not be" if lost else "none was lost")
    if free["jobs"]:
        same = f"{percent(free['exact'])} the same" if free["exact"] is not None else "none by both"
        failed = f"{free['candidate']['failures']:,} failed, {free['champion']['failures']:,} by the champion"
        yield Tile("Answered itself", f"{free['answered']:,}", f"of {free['jobs']:,}", f"{same}; {failed}")


def _live(evidence: Document, unit: str) -> Iterator[Tile]:
    for arm in ("candidate", "champion"):
        seen = evidence["arms"][arm]
        hint = f"{seen['failures']['count']:,} failed, {seen['slow']:,} slow"
        yield Tile(arm.capitalize(), f"{seen['units']:,}", f"{unit}s", hint)
    yield _sample_ratio(evidence["sample_ratio"])


def _ab(evidence: Document, unit: str) -> Iterator[Tile]:
    arms = evidence["arms"]
    judged = [arms[arm]["judged"] for arm in ("candidate", "champion")]
    yield Tile("Feedback", f"{judged[0]:,}", f"{unit}s", f"{judged[1]:,} on the champion")
    yield from _live(evidence, unit)


def _sample_ratio(ratio: Document) -> Tile:
    if ratio["planned"] is None:
        return Tile("Candidate's share", "–", None, "nothing was assigned yet")
    wrong = ratio["log_evidence"] >= ratio["threshold"]
    hint = f"planned {percent(ratio['planned'])}, {'a mismatch' if wrong else 'as it is'}"
    return Tile("Candidate's share", percent(ratio["seen"]), None, hint, "bad" if wrong else None)


_TILES: Final = {State.OFFLINE: _offline, State.SHADOW: _shadow, State.CANARY: _live, State.AB: _ab}
