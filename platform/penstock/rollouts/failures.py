"""Which ends of jobs speak against the model version that they ran on."""

from collections.abc import Mapping
from typing import Any, Final

from penstock.jobs.states import JobState

ASKED_WRONGLY: Final = frozenset({"invalid_request", "invalid_sampling", "prompt_too_long"})
"""Codes of jobs that asked for what no version can do."""


def model_may_be_to_blame(state: str, error: Mapping[str, Any] | None) -> bool:
    """Whether a model version can have made a job end so.

    Cancellations, deadlines and spent budgets are ends of another state, and what a lost machine ran is run again. Of
    failures all count but those of the request itself: one whose code nobody has heard of is the version's until it is
    known better.
    """
    return state == JobState.FAILED and (error or {}).get("code") not in ASKED_WRONGLY
