"""What one run of a job took, as its worker counts it while it goes on."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Spent:
    """Totals of one run so far, in tokens, seconds and joules; written over and over, never added up twice.

    `cached_tokens` are those of the prompt that were found in the prefix cache; None before the engine let the run in.
    `computed_tokens` ran through the model in `device_seconds` of its time; of both, what is `recomputed_` had run
    before in this run or in an earlier one that is charged. `joules` is None where `energy_note` says why nothing
    measured them. `queue_seconds` end when the engine first runs it, `prefill_seconds` with its first token,
    `decode_seconds` with its last.
    """

    cached_tokens: int | None = None
    computed_tokens: int = 0
    recomputed_tokens: int = 0
    device_seconds: float = 0.0
    recomputed_seconds: float = 0.0
    joules: float | None = None
    energy_note: str | None = None
    queue_seconds: float | None = None
    prefill_seconds: float | None = None
    decode_seconds: float | None = None

    @property
    def columns(self) -> dict[str, Any]:
        """The same as columns of `job_run`."""
        return asdict(self)
