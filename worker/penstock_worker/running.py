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

from penstock.jobs.journal import JournalEntry, PromptToken
from penstock.jobs.lease import Claim, Held, Progress
from penstock.jobs.states import JobState, RunOutcome
from penstock.jobs.structure import Structure, structure_of
from penstock.registry.tokenizer import ModelTokenizer

from penstock_worker.best_of import Candidates
from penstock_worker.choice import ChoiceStream, tellable, tellable_tops
from penstock_worker.messages import Delta, PromptScores
from penstock_worker.run_meter import CostLimit, RunMeter
from penstock_worker.tool_calls import CallReader


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
        self.structure: Structure | None = None
        self.scored_from: int | None = None
        self.journalled = 0
        self.checkpointed = 0
        self.lease_until = lease_until
        self.meter = RunMeter()
        self.untold_tokens = 0
        self.weight = claim.weight
        self.deadline = None if claim.seconds_left is None else time.time() + claim.seconds_left
        self.first_token_seconds: float | None = None
        self.limit = CostLimit.of(claim.job)
        self.ending: Ending | None = None
        self.settled = threading.Event()
        self._candidates: Candidates | None = None
        self.claimed_at = claimed_at
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
    def selecting(self) -> bool:
        """Whether its choices are candidates, of which some will be told."""
        return self._candidates is not None

    @property
    def prompt_scored(self) -> bool:
        """Whether the journal has the prompt's log probabilities."""
        return bool(self.entries) and self.entries[0].prompt is not None

    @property
    def limit_reached(self) -> bool:
        """Whether it has cost as much as it may."""
        if self.limit is None:
            return False
        generated = sum(len(stream.token_ids) for stream in self.choices)
        return self.limit.reached(len(self.prompt_ids), generated, self.meter)

    @property
    def progress(self) -> Progress:
        """The journal as it stands, for a checkpoint."""
        return Progress(self.held, list(self.entries), self.first_token_seconds, self.meter.spent)

    def restore(self, entries: Sequence[JournalEntry], tokenizer: ModelTokenizer, prompt_ids: list[int]) -> None:
        """Take over the journal of earlier runs: text, stop strings and counts stand where they left them."""
        outputs = [entry for entry in entries if entry.prompt is None]
        candidates = None if outputs else self._new_candidates()
        count = self.job.params["best_of"] if candidates else self.job.params.get("n", 1)
        streams = [self._choice(choice, tokenizer, prompt_ids) for choice in range(count)]
        structure = structure_of(self.job.params, tokenizer)
        scored_from = tokenizer.scored_from(self.job.input, prompt_ids) if self.job.kind == "score" else None
        for choice, stream in enumerate(streams):
            stream.replay([entry for entry in outputs if entry.choice == choice])
        with self._lock:
            self.prompt_ids, self.entries, self.choices = prompt_ids, list(entries), streams
            self._candidates, self.structure, self.scored_from = candidates, structure, scored_from
            if self.job.params.get("prompt_logprobs") is not None and len(prompt_ids) == 1:
                unscored = PromptScores(self.request_id, 1, own=b"", ids=b"", tops=b"")
                self._note_prompt(unscored)  # the engine has nothing to say of it
            self._end_if_scored()
            self._end_if_complete()

    def take(self, deltas: Sequence[Delta]) -> list[int]:
        """The engine's next tokens, in order. Ignored once the run has ended.

        Returns the choices that end here by a stop string, which the engine does not know. The entries are added at
        once: whoever copies them meanwhile has all of a step or nothing.
        """
        with self._lock:
            if self.ending is not None or self.scored_from is not None:
                return []
            if self.first_token_seconds is None:
                self.first_token_seconds = time.monotonic() - self.claimed_at
            going_on = sorted({delta.choice for delta in deltas if not self._has_ended(delta.choice)})
            self._add([entry for delta in deltas for entry in self._entries_of(delta)])
            self._end_if_complete()
            known = {delta.choice for delta in deltas if delta.finish_reason is not None}
            return [choice for choice in going_on if self._has_ended(choice) and choice not in known]

    def take_prompt(self, scores: PromptScores) -> None:
        """The prompt's log probabilities, which go before every token."""
        with self._lock:
            if self.ending is None:
                self._note_prompt(scores)
                self._end_if_scored()
                self._end_if_complete()

    def close_choice(self, choice: int, finish_reason: str) -> None:
        """The engine has nothing left to generate for this choice."""
        with self._lock:
            self._add(self.choices[choice].end(finish_reason))
            self._end_if_complete()

    def end(self, ending: Ending, finish_reason: str | None = None) -> bool:
        """End the run; open choices get `finish_reason`. False when it had ended already: the first ending stands."""
        with self._lock:
            if self.ending is not None:
                return False
            if finish_reason is not None:
                self._add([entry for stream in self.choices for entry in stream.end(finish_reason)])
                self._tell()
            self.ending = ending
            return True

    def _entries_of(self, delta: Delta) -> list[JournalEntry]:
        if self._has_ended(delta.choice):
            return []
        stream = self.choices[delta.choice]
        return stream.take(delta.token_id, delta.logprob, delta.finish_reason, delta.top_logprobs)

    def _has_ended(self, choice: int) -> bool:
        return self.choices[choice].finish_reason is not None

    def _add(self, entries: list[JournalEntry]) -> None:
        if self._candidates is not None:
            self._candidates.hold(entries)
        else:
            self.entries += entries

    def _tell(self) -> None:
        """Every candidate has ended: the likeliest become the output, all at once."""
        if self._candidates is not None:
            self.untold_tokens = self._candidates.untold_tokens
            self.entries += self._candidates.tell()
            self._candidates = None

    def _note_prompt(self, scores: PromptScores) -> None:
        if not self.entries:
            tokens = prompt_tokens(self.prompt_ids, scores)
            self.entries.append(JournalEntry(0, 0, None, "", None, self.fence, prompt=tokens))

    def _end_if_scored(self) -> None:
        """A score is a choice of no token, which ends where the prompt does."""
        if self.scored_from is not None and self.prompt_scored:
            self._add(self.choices[0].end("length"))

    def _end_if_complete(self) -> None:
        reasons = {stream.finish_reason for stream in self.choices}
        if self.ending is None and None not in reasons:
            self._tell()
            states = [state for reason, state in _STATE_OF_REASON.items() if reason in reasons]
            self.ending = Finished(states[0] if states else JobState.SUCCEEDED)

    def _new_candidates(self) -> Candidates | None:
        told, best_of = self.job.params.get("n", 1), self.job.params.get("best_of")
        if best_of is None or best_of == told:
            return None
        return Candidates(told=told, with_logprobs=self.job.params.get("logprobs", False))

    def _choice(self, choice: int, tokenizer: ModelTokenizer, prompt_ids: list[int]) -> ChoiceStream:
        params = self.job.params
        form = tokenizer.call_form if params.get("tools") and params["tool_choice"] != "none" else None
        return ChoiceStream(
            choice,
            tokenizer.detokenizer(prompt_ids, shown=form.markers if form else ()),
            stops=params.get("stop", ()),
            min_tokens=params.get("min_tokens", 0),
            fence=self.fence,
            calls=CallReader(form, self.id, choice) if form else None,
        )


# A run may die between the journal's last entry and the result; its successor reads there how the job ended.
_STATE_OF_REASON: Final = {state.value: state for state in (JobState.CANCELLED, JobState.EXPIRED)}


def prompt_tokens(prompt_ids: Sequence[int], scores: PromptScores) -> tuple[PromptToken, ...]:
    """The whole prompt, its scored tokens with their log probabilities."""
    unscored = [PromptToken(token_id, None) for token_id in prompt_ids[: scores.start]]
    scored = zip(prompt_ids[scores.start :], scores.logprobs, scores.top_logprobs, strict=True)
    return (*unscored, *(PromptToken(token, tellable(logprob), tellable_tops(tops)) for token, logprob, tops in scored))
