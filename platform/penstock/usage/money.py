"""Amounts of money as requests and answers hold them."""

from decimal import Decimal
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field, StringConstraints, WithJsonSchema

_PATTERN: Final = r"^[0-9]{1,12}(\.[0-9]{1,9})?$"


def _exact(value: Any) -> Any:
    """Text such as 0.25 as it is written; a JSON number as its shortest text, which is what was meant."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _parsed(value: Any) -> Any:
    text = _exact(value)
    if isinstance(text, str):
        whole, point, fraction = text.partition(".")
        if not (text.isascii() and whole.isdigit() and len(whole) <= 12 and (fraction.isdigit() or not point)):
            raise ValueError("must be an amount such as 0.25, with up to 12 digits before the point")
        if len(fraction) > 9:
            raise ValueError("must have at most 9 decimal places")
        return Decimal(text)
    return text


Money = Annotated[
    Decimal,
    BeforeValidator(_parsed),
    WithJsonSchema({"type": "string", "pattern": _PATTERN, "examples": ["0.25"]}),
]
"""An exact amount, of nine decimal places at most. Answers hold it as text."""

Currency = Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$"), Field(description="ISO 4217, such as EUR")]
