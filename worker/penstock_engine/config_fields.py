"""Fields of a JSON object of a model folder, each error naming the file, the field and what would be right."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock_engine.errors import ModelCorrupt, ModelUnsupported


@dataclass(frozen=True, slots=True)
class Fields:
    """`raw`, found in the file `path`."""

    path: Path
    raw: Mapping[str, Any]

    def number(self, field: str, default: float | None = None) -> float:
        """A number above 0. Raises ModelCorrupt."""
        value = self.raw.get(field, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            raise self.corrupt(field, "a number above 0")
        return float(value)

    def optional_number(self, field: str) -> float | None:
        return None if self.raw.get(field) is None else self.number(field)

    def count(self, field: str, default: int | None = None) -> int:
        """A whole number of at least 1; null is the default. Raises ModelCorrupt."""
        value = self.raw.get(field)
        if value is None:
            value = default
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.corrupt(field, "a whole number of at least 1")
        return value

    def optional_count(self, field: str) -> int | None:
        return None if self.raw.get(field) is None else self.count(field)

    def flag(self, field: str, default: bool = False) -> bool:
        return bool(self.raw.get(field, default))

    def numbers(self, field: str, length: int) -> tuple[float, ...]:
        """A list of `length` numbers above 0. Raises ModelCorrupt."""
        value = self.raw.get(field)
        right = isinstance(value, list) and len(value) == length
        if not right or not all(isinstance(each, int | float) and each > 0 for each in value or ()):
            raise self.corrupt(field, f"a list of {length} numbers above 0")
        return tuple(float(each) for each in value or ())

    def corrupt(self, field: str, right: str) -> ModelCorrupt:
        return ModelCorrupt(self.path, f"{field} is {self.raw.get(field)!r}", f"{field} must be {right}")

    def unsupported(self, field: str, value: object, served: str) -> ModelUnsupported:
        return ModelUnsupported(self.path, f"{field} is {value!r}", f"this engine runs {served}")
