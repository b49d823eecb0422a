"""What can go wrong while a model is compressed, as types.

    CompressError
    ├── InvalidRecipe       a field of the recipe cannot be
    ├── SourceUnusable      the model to compress is missing, damaged, or of a kind that the recipe does not take
    ├── TargetUnusable      the folder to write to holds something else
    └── CalibrationUnusable there is no text, or too little of it

Each class has a stable `code`; each message names what is at fault and what would be right.
"""

from pathlib import Path
from typing import ClassVar


class CompressError(Exception):
    """Root of the tree."""

    code: ClassVar[str] = "compress_error"


class InvalidRecipe(CompressError):
    """A field of a recipe is out of range, or does not go with another."""

    code = "invalid_recipe"

    def __init__(self, field: str, remedy: str) -> None:
        self.field = field
        super().__init__(f"recipe field {field!r}: {remedy}")


class SourceUnusable(CompressError):
    """The model to compress cannot be read; `path` is the file or folder at fault."""

    code = "source_unusable"

    def __init__(self, path: Path, reason: str) -> None:
        self.path = path
        super().__init__(f"{path}: {reason}")


class TargetUnusable(CompressError):
    """Nothing can be written to `path`."""

    code = "target_unusable"

    def __init__(self, path: Path, reason: str) -> None:
        self.path = path
        super().__init__(f"{path}: {reason}")


class CalibrationUnusable(CompressError):
    """The calibration text does not give the tokens that were asked for."""

    code = "calibration_unusable"
