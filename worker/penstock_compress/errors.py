"""What can go wrong while a model is compressed, as types.

    CompressError
    ├── InvalidRecipe       a field of the recipe cannot be
    ├── SourceUnusable      the model to compress is missing, damaged, or of a kind that the recipe does not take
    ├── TargetUnusable      the folder to write to holds something else
    ├── CalibrationUnusable there is no text, or too little of it
    └── InvalidPlan         a field of a plan cannot be

Each class has a stable `code`; each message names what is at fault and what would be right.
"""

from pathlib import Path
from typing import ClassVar


class CompressError(Exception):
    """Root of the tree."""

    code: ClassVar[str] = "compress_error"
    field: str | None = None


class InvalidRecipe(CompressError):
    """A field of a recipe is out of range, or does not go with another."""

    code = "invalid_recipe"

    def __init__(self, field: str, remedy: str) -> None:
        self.field = field
        super().__init__(f"recipe field {field!r}: {remedy}")


class SourceUnusable(CompressError):
    """The model to compress cannot be read; `path` is the file or folder at fault."""

    code = "source_unusable"
    field = "source"

    def __init__(self, path: Path, reason: str) -> None:
        self.path = path
        super().__init__(f"{path}: {reason}")


class TargetUnusable(CompressError):
    """Nothing can be written to `path`."""

    code = "target_unusable"
    field = "out"

    def __init__(self, path: Path, reason: str) -> None:
        self.path = path
        super().__init__(f"{path}: {reason}")


class CalibrationUnusable(CompressError):
    """The calibration text does not give the tokens that were asked for."""

    code = "calibration_unusable"
    field = "calibration"


class Stopped(CompressError):
    """The command was told to end (SIGTERM); what is done is kept."""

    code = "stopped"

    def __init__(self) -> None:
        super().__init__("stopped; what is done is kept, and the same command goes on with it")


class InvalidPlan(CompressError):
    """A field of a plan is out of range, or does not go with another."""

    code = "invalid_plan"

    def __init__(self, field: str, remedy: str) -> None:
        self.field = field
        super().__init__(f"{field!r}: {remedy}")
