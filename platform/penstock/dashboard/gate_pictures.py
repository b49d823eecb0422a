"""How a guardrail's interval narrowed while its gate was open, as a chart."""

from collections.abc import Mapping
from typing import Any, Final

from penstock.errors import NotFound
from penstock.rollouts.states import State

_POINTS: Final = ("points", 100.0)
_UNITS: Final[Mapping[str, tuple[str, float]]] = {"mean_kld": ("nats", 1.0), "disagreement": ("%", 1.0)}
_SAYS: Final = {
    "errors": "How much more often the candidate fails than the champion, in points",
    "latency": "How much more often the candidate is slow, in points",
    "feedback": "How much lower the candidate's scores are, in points",
    "mean_kld": "How far answers diverge in the mean, in nats a token",
    "disagreement": "Tokens that the candidate would have chosen otherwise",
}
_AS_GOOD: Final = "as the champion"
_INTERVAL: Final = frozenset({"low", "high", "margin", "units"})


def shown(gate: Mapping[str, Any]) -> list[str]:
    """The guardrails of the gate whose intervals went a way that can be drawn."""
    names = (reason["name"] for reason in gate["judgement"]["reasons"])
    return [name for name in names if name in _SAYS and _drawn(gate, name)]


def says(name: str) -> str:
    """What the chart of a guardrail shows, and in which unit."""
    return _SAYS[name]


def confidence_chart(gate: Mapping[str, Any], guard: str, unit: str) -> dict[str, Any]:
    """The guardrail's interval over the units seen, and its margin (`js/charts.js`, `form: band`).

    Raises `NotFound` for a guardrail of which no interval is known.
    """
    drawn = _drawn(gate, guard)
    if guard not in _SAYS or not drawn:
        raise NotFound(f"no interval is known of the guardrail {guard!r}")
    name, factor = _UNITS.get(guard, _POINTS)

    def line(member: str) -> list[float]:
        return [figures[member] * factor for figures in drawn.values()]

    return {
        "at": list(drawn),
        "across": f"{unit}s" if gate["status"] == State.SHADOW else f"pairs of {unit}s",
        "step": 0,
        "unit": name,
        "form": "band",
        "zero": None if guard in _UNITS else _AS_GOOD,
        "lines": [
            {"label": "At least", "values": line("low"), "colour": 1},
            {"label": "At most", "values": line("high"), "colour": 1},
            {"label": "Margin", "values": line("margin"), "colour": 4},
        ],
    }


def _drawn(gate: Mapping[str, Any], guard: str) -> dict[int, Mapping[str, float]]:
    """How the guardrail stood after so many units: of several looks at as many, the last."""
    found = (point["guards"].get(guard, {}) for point in gate["history"])
    kept = {int(figures["units"]): figures for figures in found if figures.keys() >= _INTERVAL}
    return dict(sorted(kept.items()))
