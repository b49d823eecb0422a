"""How a guardrail's interval narrowed while its gate was open, as a chart."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from penstock.errors import NotFound

_COLOURS: Final = {"low": 5, "high": 5, "margin": 4, "value": 1, "limit": 4}


def confidence_chart(gate: Mapping[str, Any], guard: str) -> dict[str, Any]:
    """The guardrail's interval, which holds at every look, and its margin; of a limit its value and its limit.

    Raises `NotFound` for a guardrail of which nothing is known.
    """
    points = [point for point in gate["history"] if guard in point["guards"]]
    if not points:
        raise NotFound(f"nothing is known of the guardrail {guard!r}")
    figures = [point["guards"][guard] for point in points]
    known = [name for name in _COLOURS if any(name in each for each in figures)]
    return {
        "at": [int(_moment(point["at"]).timestamp()) for point in points],
        "step": 0,
        "unit": "",
        "form": "line",
        "signed": True,
        "lines": [
            {"label": name.capitalize(), "values": [each.get(name) for each in figures], "colour": _COLOURS[name]}
            for name in known
        ],
    }


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)
