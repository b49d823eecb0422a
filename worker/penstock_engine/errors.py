"""What can go wrong in the engine, as types.

    EngineError
    ├── InvalidConfig                   an EngineConfig field cannot be
    ├── ModelLoadError                  the folder cannot be served
    │   ├── ModelNotFound               a file or the folder is missing
    │   ├── ModelCorrupt                a file is there but is not what it should be
    │   └── ModelUnsupported            well formed, but this engine does not run it
    ├── RequestRefused                  submit() said no; nothing was kept
    │   ├── InvalidRequest              a field other than sampling is wrong
    │   ├── InvalidSampling             a sampling parameter is out of range
    │   ├── InvalidGrammar              the output's grammar cannot be compiled, or admits nothing
    │   ├── PromptTooLong               the prompt leaves no position to generate
    │   ├── RequestTooLarge             prompt and answer could never fit the KV pool, even alone
    │   ├── QueueFull                   try again later, or elsewhere
    │   └── AlreadyFinished             the tokens to resume from already end the generation
    ├── EngineBusy                      score() needs the engine for itself
    ├── ScoringFailed                   the model has no log probabilities for these tokens
    ├── StepFailed                      the model runs nothing any more; names the requests that were in the batch
    ├── TraceUnreadable                 a file is not a trace of steps
    └── OutOfPages                      more pages were taken than are free: a broken invariant, never load

Each class has a stable `code`; each message names what is at fault and what would be right.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar


class EngineError(Exception):
    """Root of the tree."""

    code: ClassVar[str] = "engine_error"


class InvalidConfig(EngineError):
    """An engine setting is out of range."""

    code = "invalid_engine_config"

    def __init__(self, field: str, remedy: str) -> None:
        self.field = field
        super().__init__(f"engine setting {field!r}: {remedy}")


class ModelLoadError(EngineError):
    """A model folder cannot be served; `path` is the file or folder at fault."""

    code = "model_load_error"

    def __init__(self, path: Path, problem: str, remedy: str) -> None:
        self.path, self.problem, self.remedy = path, problem, remedy
        super().__init__(f"{path}: {problem}; {remedy}")


class ModelNotFound(ModelLoadError):
    """The folder, or a file that it must hold, is missing."""

    code = "model_not_found"


class ModelCorrupt(ModelLoadError):
    """A file is unreadable, cut short, or disagrees with config.json."""

    code = "model_corrupt"


class ModelUnsupported(ModelLoadError):
    """The folder is well formed, but asks for something that this engine does not run."""

    code = "model_unsupported"


class RequestRefused(EngineError):
    """submit() refused the request and kept nothing of it."""

    code = "request_refused"


class InvalidRequest(RequestRefused):
    """A field of the request other than its sampling parameters is wrong."""

    code = "invalid_request"

    def __init__(self, field: str, remedy: str) -> None:
        self.field = field
        super().__init__(f"request field {field!r}: {remedy}")


class InvalidSampling(RequestRefused):
    """A sampling parameter is out of range."""

    code = "invalid_sampling"

    def __init__(self, field: str, remedy: str) -> None:
        self.field = field
        super().__init__(f"sampling parameter {field!r}: {remedy}")


class InvalidGrammar(RequestRefused):
    """The grammar of a request cannot be compiled, or admits nothing."""

    code = "invalid_grammar"

    def __init__(self, kind: str, problem: str) -> None:
        self.field, self.kind, self.problem = "grammar", kind, problem
        super().__init__(f"sampling parameter 'grammar': must be a {kind} that can be compiled: {problem}")


class PromptTooLong(RequestRefused):
    """The prompt fills, or overfills, the model's context."""

    code = "prompt_too_long"

    def __init__(self, prompt_tokens: int, max_model_len: int) -> None:
        self.prompt_tokens, self.max_model_len = prompt_tokens, max_model_len
        super().__init__(
            f"the prompt has {prompt_tokens} tokens; this engine's context is {max_model_len} tokens, "
            f"so a prompt may have at most {max_model_len - 1}"
        )


class RequestTooLarge(RequestRefused):
    """Prompt and answer together need more KV pages than the whole pool has."""

    code = "request_too_large"

    def __init__(self, needed_tokens: int, pool_tokens: int) -> None:
        self.needed_tokens, self.pool_tokens = needed_tokens, pool_tokens
        super().__init__(
            f"prompt and max_tokens need {needed_tokens} KV slots; the whole pool has {pool_tokens}: "
            "ask for fewer max_tokens, or give the engine more kv_bytes"
        )


class QueueFull(RequestRefused):
    """The waiting queue is at its bound."""

    code = "queue_full"

    def __init__(self, max_waiting: int) -> None:
        self.max_waiting = max_waiting
        super().__init__(f"{max_waiting} requests wait already, which is the most this engine keeps; retry later")


class AlreadyFinished(RequestRefused):
    """The tokens given to resume from already end every choice; `finish_reasons` says how each."""

    code = "already_finished"

    def __init__(self, request_id: str, finish_reasons: Mapping[int, str]) -> None:
        self.request_id, self.finish_reasons = request_id, finish_reasons
        how = ", ".join(f"choice {choice} by {reason!r}" for choice, reason in finish_reasons.items())
        super().__init__(f"request {request_id!r} has nothing left to generate: it ended {how}")


class EngineBusy(EngineError):
    """score() was called while requests are in flight, whose tokens it would have to keep from the caller."""

    code = "engine_busy"

    def __init__(self, in_flight: int) -> None:
        self.in_flight = in_flight
        super().__init__(
            f"{in_flight} requests are in flight: score when there are none, or submit with prompt_logprobs instead"
        )


class ScoringFailed(EngineError):
    """The model's output over the tokens to be scored is not finite."""

    code = "scoring_failed"


class StepFailed(EngineError):
    """The forward pass raised, and raises even for a token that is nobody's: no request is at fault.

    Nothing of the step was committed: every request stands where it stood before it, so the caller may step again.
    `request_ids` are those that were in the batch.
    """

    code = "step_failed"

    def __init__(self, step: int, request_ids: tuple[str, ...], cause: Exception) -> None:
        self.step, self.request_ids, self.cause = step, request_ids, cause
        super().__init__(
            f"step {step} failed with {type(cause).__name__}: {cause} (in the batch: {', '.join(request_ids)})"
        )


class OutOfPages(EngineError):
    """More pages were asked of the allocator than are free: its callers must look before they take."""

    code = "out_of_pages"

    def __init__(self, wanted: int, free: int) -> None:
        self.wanted, self.free = wanted, free
        super().__init__(f"{wanted} pages wanted, {free} free")


class TraceUnreadable(EngineError):
    """A file is not the trace of an engine's steps; `line` counts from 1."""

    code = "trace_unreadable"

    def __init__(self, path: Path, line: int, problem: str) -> None:
        self.path, self.line = path, line
        super().__init__(f"{path}, line {line}: {problem}; it must be what an engine's trace.export wrote")
