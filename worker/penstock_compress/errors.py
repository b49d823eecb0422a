"""What can go wrong while a model is compressed or evaluated, as types.

    CompressError
    ├── InvalidRecipe       a field of the recipe cannot be
    ├── BudgetTooSmall      no version of the model is as small as that
    ├── SourceUnusable      the model to compress is missing, damaged, or of a kind that the recipe does not take
    ├── TargetUnusable      the folder to write to holds something else
    ├── CalibrationUnusable there is no text, or too little of it
    ├── InvalidPlan         a field of a plan cannot be
    ├── EvaluationDataUnusable  the file to evaluate on cannot be read, or a line of it
    ├── ModelRefused        the engine does not run a model that is to be evaluated; its code is the engine's
    ├── ModelsDiffer        two models cannot be held against each other
    └── EvaluationFailed    a model ran, and no figures came of it

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


class BudgetTooSmall(CompressError):
    """The smallest version of the model has more bytes than are asked for; `least` says how many."""

    code = "budget_too_small"
    field = "target_bytes"

    def __init__(self, budget: int, least: int) -> None:
        self.least = least
        super().__init__(f"recipe field 'target_bytes': {budget:,} bytes are too few; the smallest has {least:,}")


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


class EvaluationDataUnusable(CompressError):
    """The file to evaluate on cannot be read, or a line of it is not what it should be."""

    code = "evaluation_data_unusable"
    field = "data"


class ModelRefused(CompressError):
    """The engine does not run one of two models; `code` is that of the engine's error."""

    code = "model_refused"

    def __init__(self, field: str, code: str, reason: str) -> None:
        self.field, self.code = field, code  # type: ignore[misc]  # the engine's own code says more than ours
        super().__init__(reason)


class ModelsDiffer(CompressError):
    """Two models have no distributions over the same tokens."""

    code = "models_differ"
    field = "against"


class EvaluationFailed(CompressError):
    """A model ran, and no figures came of it."""

    code = "evaluation_failed"
