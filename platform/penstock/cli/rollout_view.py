"""How a rollout looks in a terminal: its course, its gate with a bar for each interval, and its moves."""

from collections.abc import Iterator
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from penstock.cli.render import printable
from penstock.client.rollouts import Decision, Rollout, RolloutGate, RolloutReason
from penstock.clock import iso

_WIDTH: Final = 33
_MOST_MOVES: Final = 8
_STYLES: Final = {"promote": "green", "hold": "yellow", "rollback": "red"}
_MARKS: Final = {"passed": ("✔ ", "green"), "here": ("▶ ", "bold"), "stopped": ("✘ ", "red")}


def view_of(rollout: Rollout) -> RenderableType:
    """All of it, to be printed."""
    gate = _current(rollout)
    parts: list[RenderableType] = [Text(printable(line_of(rollout)), style="bold"), _course(rollout)]
    if gate is not None:
        parts += [Text(""), _gate(gate), *_arms(gate), *_freely(gate)]
    return Group(*parts, Text(""), *_moves(rollout))


def line_of(rollout: Rollout) -> str:
    """Where it stands, in a line."""
    stands = f"canary step {rollout.step + 1}" if rollout.status == "canary" else rollout.status
    if rollout.paused_in:
        stands += f" in {rollout.paused_in}"
    gate = _current(rollout)
    verdict = f": {_verdict(gate)}" if gate is not None and not rollout.finished else ""
    share = f", {rollout.share:.0%} of jobs" if rollout.share else ""
    note = f" ({rollout.note})" if rollout.note else ""
    versions = f"{rollout.candidate.version} against {rollout.champion.version}"
    return f"{rollout.id} {rollout.model} {versions}, {stands}{share}{note}{verdict}"


def bar(low: float, high: float, margin: float) -> str:
    """The interval on a line from minus to plus twice the margin, or as far as it goes; 0 and the margin are marked."""
    least, most = min(low, 0.0, -margin), max(high, 2 * margin)

    def at(value: float) -> int:
        return round((value - least) / (most - least) * (_WIDTH - 1))

    cells = ["·"] * _WIDTH
    cells[at(low) : at(high) + 1] = "━" * (at(high) - at(low) + 1)
    cells[at(0.0)] = "0"
    cells[at(margin)] = "┃"
    return "".join(cells)


def _current(rollout: Rollout) -> RolloutGate | None:
    """The gate where it stands or stood last."""
    return rollout.gates[-1] if rollout.gates else None


def _verdict(gate: RolloutGate) -> str:
    judgement = gate.judgement
    if judgement.verdict != "hold":
        return judgement.verdict
    return "hold" if judgement.jobs_needed is None else f"hold, some {judgement.jobs_needed:,} jobs more"


def _course(rollout: Rollout) -> Text:
    text = Text()
    for place in rollout.course:
        mark, style = _MARKS.get(place.progress, ("", "dim"))
        text.append(" → " if text else "").append(f"{mark}{place.title}", style=style)
    return text


def _gate(gate: RolloutGate) -> Table:
    table = Table(box=None, pad_edge=False, title=f"{gate.title}: {_verdict(gate)}", title_justify="left")
    for heading in ("", "", "where it lies", "why", "jobs more"):
        table.add_column(heading, justify="right" if heading == "jobs more" else "left")
    for reason in gate.judgement.reasons:
        verdict = Text(reason.verdict, style=_STYLES[reason.verdict])
        table.add_row(reason.name, verdict, _bar_of(reason), printable(reason.text), _needed(reason))
    return table


def _bar_of(reason: RolloutReason) -> str:
    figures = reason.figures
    if not {"low", "high", "margin"} <= figures.keys():
        return ""
    return bar(figures["low"], figures["high"], figures["margin"])


def _needed(reason: RolloutReason) -> str:
    if reason.verdict != "hold":
        return ""
    return "?" if reason.jobs_needed is None else f"{reason.jobs_needed:,}"


def _arms(gate: RolloutGate) -> Iterator[Text]:
    for name, arm in gate.evidence["arms"].items():
        if arm["units"]:
            yield Text(f"{name}: {arm['units']:,} units, {_failed(arm['failures'])}, {arm['slow']:,} slow")


def _freely(gate: RolloutGate) -> Iterator[Text]:
    free = gate.evidence["free"]
    if free["jobs"]:
        failed = f"{free['candidate']['failures']:,} failed, of the champion's own {free['champion']['failures']:,}"
        yield Text(f"candidate by itself, for nobody's eyes: {free['jobs']:,} jobs, {failed}")


def _failed(failures: dict[str, Any]) -> str:
    return f"{failures['count']:,} failed ({failures['low']:.2%} to {failures['high']:.2%})"


def _moves(rollout: Rollout) -> Iterator[Text]:
    left_out = len(rollout.decisions) - _MOST_MOVES
    if left_out > 0:
        yield Text(f"{left_out} earlier moves", style="dim")
    for decision in rollout.decisions[-_MOST_MOVES:]:
        yield Text(printable(_move(decision)))


def _move(decision: Decision) -> str:
    why = decision.reason or (decision.judgement.reasons[0].text if decision.judgement else "")
    told = f"{decision.number:>3} {iso(decision.decided_at)} {decision.move} to {decision.to_status}"
    return f"{told}, by {decision.actor['name']}" + (f": {why}" if why else "")
