"""One job while this worker holds it: its journal in memory, its choices, and how its run ends.

Four threads meet here. The bridge's reader gives tokens (`take`), the heartbeat may stop the job (`end`), the
journal writer sends `entries[journalled:]` to Redis, and the pool thread that claimed the job waits for the
end and writes it down.
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from penstock.jobs.journal import JournalEntry
from penstock.jobs.lease import Claim, Held, Progress
from penstock.jobs.states import JobState, RunOutcome
from penstock.registry.tokenizer import ModelTokenizer

from penstock_worker.choice import ChoiceStream
from penstock_worker.messages import Delta

CHOICES: Final = 1
"""How many answers a job asks for."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The job is over: what there is of the output is the output."""

    state: JobState
    error: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class GivenBack:
    """Another run goes on where this one stopped."""

    outcome: RunOutcome
    reason: str


@dataclass(frozen=True, slots=True)
class Lost:
    """The job is no longer ours; nothing more of it may be written."""


Ending = Finished | GivenBack | Lost


class RunningJob:
    """A claimed job. `journalled` is the journal writer's, `checkpointed` and `lease_until` are the
    heartbeat's.

    `lease_until` is on this process's monotonic clock, counted from before the database was asked, so never
    late.
    """

    def __init__(self, claim: Claim, *, claimed_at: float, lease_until: float) -> None:
        self.job = claim.job
        self.held = Held(claim.job.id, claim.fence)
        self.request_id = f"{claim.job.id}.{claim.fence}"
        self.prompt_ids: list[int] = []
        self.entries: list[JournalEntry] = []
        self.choices: list[ChoiceStream] = []
        self.journalled = 0
        self.checkpointed = 0
        self.lease_until = lease_until
        self.cached_tokens = 0
        self.first_token_seconds: float | None = None
        self.ending: Ending | None = None
        self.settled = threading.Event()
        self._claimed_at = claimed_at
        self._lock = threading.Lock()

    @property
    def id(self) -> str:
        return self.job.id

    @property
    def fence(self) -> int:
        return self.held.fence

    @property
    def restored(self) -> bool:
        """Whether what earlier runs journalled is in memory: before that the run must not be ended with its output."""
        return bool(self.choices)

    @property
    def progress(self) -> Progress:
        """The journal as it stands, for a checkpoint."""
        return Progress(self.held, list(self.entries), self.first_token_seconds)

    def restore(self, entries: Sequence[JournalEntry], tokenizer: ModelTokenizer, prompt_ids: list[int]) -> None:
        """Take over the journal of earlier runs: text, stop strings and counts stand where they left them."""
        streams = [self._choice(choice, tokenizer, prompt_ids) for choice in range(CHOICES)]
        for choice, stream in enumerate(streams):
            stream.replay([entry for entry in entries if entry.choice == choice])
        with self._lock:
            self.prompt_ids, self.entries, self.choices = prompt_ids, list(entries), streams
            self._end_if_complete()

    def take(self, delta: Delta) -> None:
        """The engine's next token. Ignored once the run has ended."""
        with self._lock:
            if self.ending is not None:
                return
            if self.first_token_seconds is None:
                self.first_token_seconds = time.monotonic() - self._claimed_at
            stream = self.choices[delta.choice]
            if stream.finish_reason is None:
                self.entries += stream.take(delta.token_id, delta.logprob, delta.finish_reason)
                self._end_if_complete()

    def close_choices(self, finish_reason: str) -> None:
        """The engine has nothing left to generate: every open choice ends with this reason."""
        with self._lock:
            self._append_ends(finish_reason)
            self._end_if_complete()

    def end(self, ending: Ending, finish_reason: str | None = None) -> bool:
        """End the run; open choices get `finish_reason`. False when it had ended already: the first ending stands."""
        with self._lock:
            if self.ending is not None:
                return False
            if finish_reason is not None:
                self._append_ends(finish_reason)
            self.ending = ending
            return True

    def _append_ends(self, finish_reason: str) -> None:
        for stream in self.choices:
            self.entries += stream.end(finish_reason)

    def _end_if_complete(self) -> None:
        reasons = {stream.finish_reason for stream in self.choices}
        if self.ending is None and None not in reasons:
            states = [state for reason, state in _STATE_OF_REASON.items() if reason in reasons]
            self.ending = Finished(states[0] if states else JobState.SUCCEEDED)

    def _choice(self, choice: int, tokenizer: ModelTokenizer, prompt_ids: list[int]) -> ChoiceStream:
        params = self.job.params
        return ChoiceStream(
            choice,
            tokenizer.detokenizer(prompt_ids),
            stops=params.get("stop", ()),
            min_tokens=params.get("min_tokens", 0),
            fence=self.fence,
        )


# A run may die between the journal's last entry and the result; its successor reads there how the job ended.
_STATE_OF_REASON: Final = {state.value: state for state in (JobState.CANCELLED, JobState.EXPIRED)}
