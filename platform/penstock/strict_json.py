"""What JSON's grammar leaves open or Python's parser adds to it, refused: programs take it this way or that."""

import json
import math
from typing import Any

from penstock.errors import InvalidJson
from penstock.problems import refuse_field


def refuse_loose_json(data: bytes) -> None:
    """Raise `ValidationFailed` for a member that is given twice, and `InvalidJson` for a number that is none.

    PostgreSQL keeps no `NaN` and no `Infinity`, which is also what Python makes of 1e999.
    """
    json.loads(data, object_pairs_hook=_given_once, parse_constant=_no_number, parse_float=_finite)


def _given_once(members: list[tuple[str, Any]]) -> None:
    names: set[str] = set()
    for name, _ in members:
        if name in names:
            raise refuse_field(name, "is given more than once", "give it once")
        names.add(name)


def _no_number(literal: str) -> None:
    raise InvalidJson(f"the body is not JSON: {literal[:20]} is no number of it")


def _finite(literal: str) -> float:
    if not math.isfinite(number := float(literal)):
        _no_number(literal)
    return number
