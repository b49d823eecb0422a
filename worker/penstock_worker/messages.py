"""What the worker and an engine process say to each other: msgpack over a pipe, one message a step each way.

The worker's first message is an `EngineSpec`, every later one `Commands`. The engine process answers with
`Loading`, then `Ready` (or `Broken`), then a `StepReport` after every step and after every command that
changed something. One that shares its device says what it `Needs` before it loads anything, and waits for the `Grant`.
"""

from collections.abc import Callable
from typing import Final, Literal

import msgspec


class EngineSpec(msgspec.Struct, frozen=True):
    """Which folder to load, and within which limits. `device` is auto, cpu or cuda[:N]; `kv_bytes` None is measured.

    With a `trace_folder` the engine's last steps are recorded in a file there whose name begins with `name`. With
    `shares_device` it asks for its memory before it takes any, and `kv_bytes` is not heeded but by who grants. The rest
    are the engine's own settings of these names, but for two: `memory_share` leaves a second version room to load
    beside this one, and `max_model_len` may be above what the model has, which counts then.
    """

    folder: str
    max_running: int
    device: str = "auto"
    kv_bytes: int | None = None
    threads: int | None = None
    name: str = ""
    trace_folder: str | None = None
    quantization: Literal["int8", "int4", "fp8"] | None = None
    kv_dtype: Literal["auto", "int8", "fp8"] = "auto"
    graphs: Literal["auto", "off"] = "auto"
    overlap: Literal["auto", "on", "off"] = "auto"
    memory_share: float = 0.45
    max_model_len: int | None = None
    deterministic: bool = False
    shares_device: bool = False


class Grammar(msgspec.Struct, frozen=True, array_like=True):
    """What an output must be; the fields are those of the engine's own."""

    kind: str
    source: str | tuple[str, ...]


class Sampling(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """How tokens are chosen; the fields and defaults are those of the engine's own sampling parameters.

    All but `best_of`: the worker itself chooses among candidates, by their text's end (see `best_of`).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = 0
    prompt_logprobs: int | None = None
    n: int = 1
    grammar: Grammar | None = None


class Submit(msgspec.Struct, frozen=True, array_like=True):
    """One request. `output_ids` are the tokens that earlier runs generated, a list for each choice.

    `closed` choices have ended and are not to go on. `deadline` is in seconds since the epoch, by this machine's clock.
    With `scored_from` nothing is told but how likely the prompt's tokens from there on are.
    """

    request_id: str
    prompt_ids: list[int]
    output_ids: list[list[int]]
    sampling: Sampling
    namespace: str
    priority: int
    request_class: str
    closed: list[int] = []
    tenant: str = ""
    weight: float = 1.0
    deadline: float | None = None
    token_budget: int | None = None
    scored_from: int | None = None

    @property
    def places(self) -> int:
        """How many places in a step it wants."""
        return self.sampling.n - len(self.closed)


class Commands(msgspec.Struct, frozen=True):
    """All that was asked since the last message. Submits come before aborts; `ping` is answered by its number.

    An abort names a request, and one choice of it or (None) all. `kv_bytes` is what K and V may take from now on.
    """

    submits: list[Submit] = []
    aborts: list[tuple[str, int | None]] = []
    ping: int = 0
    paused: bool = False
    stop: bool = False
    kv_bytes: int | None = None


class Grant(msgspec.Struct, frozen=True):
    """What an engine may take for K and V, in bytes; None lets it measure what is left beside its weights."""

    kv_bytes: int | None


class Delta(msgspec.Struct, frozen=True, array_like=True):
    """One token of one choice; `finish_reason` comes with its last."""

    request_id: str
    choice: int
    token_id: int
    logprob: float | None
    finish_reason: str | None
    top_logprobs: tuple[tuple[int, float], ...] = ()


class PromptScores(msgspec.Struct, frozen=True, array_like=True):
    """Log probabilities of a prompt's tokens from `start` on, and the likeliest in the place of each.

    As they lie in the engine's memory, of this very machine: the engine's process is not kept from its next step by
    thousands of numbers that another can read out.
    """

    request_id: str
    start: int
    own: bytes  # float32 [tokens]
    ids: bytes  # int32 [tokens, tops], the likeliest first
    tops: bytes  # float32 [tokens, tops], theirs

    @property
    def logprobs(self) -> list[float]:
        return list[float](memoryview(self.own).cast("f"))

    @property
    def top_logprobs(self) -> list[tuple[tuple[int, float], ...]]:
        """For each token the likeliest: ids and log probabilities."""
        ids, values = memoryview(self.ids).cast("i").tolist(), memoryview(self.tops).cast("f").tolist()
        likeliest: list[tuple[int, float]] = list(zip(ids, values, strict=True))
        tokens = len(self.own) // 4
        each = len(likeliest) // tokens if tokens else 0
        return [tuple(likeliest[at * each : (at + 1) * each]) for at in range(tokens)]


class Ended(msgspec.Struct, frozen=True, array_like=True):
    """A choice that had ended before it was submitted, and how: no token of it will come."""

    request_id: str
    choice: int
    finish_reason: str


class Share(msgspec.Struct, frozen=True, array_like=True):
    """What one request had of a step: tokens, those of them that had run before, and seconds of the device."""

    request_id: str
    tokens: int
    recomputed: int
    seconds: float


class Measures(msgspec.Struct, frozen=True, array_like=True):
    """How long a request took that has ended in the engine; the fields are those of the engine's own measures."""

    request_id: str
    ended: str
    choices: int
    prompt_tokens: int
    cached_tokens: int
    computed_tokens: int
    recomputed_tokens: int
    generated_tokens: int
    preemptions: int
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    gaps: int
    gap_seconds: float
    longest_gap_seconds: float


class Refusal(msgspec.Struct, frozen=True, array_like=True):
    """A request that the engine refused or gave up, and why."""

    request_id: str
    code: str
    message: str


class Loading(msgspec.Struct, frozen=True, tag=True):
    """How far loading has come: 0 to 1."""

    progress: float


class Needs(msgspec.Struct, frozen=True, tag=True):
    """What an engine will take of its device, in bytes, told before it loads anything.

    `weights` and `workspace` are reckoned from the folder. K and V take `page` bytes a page: one longest sequence takes
    `longest`, and more than `most` is of no use. `kv` is what it would take alone; None is known once it has loaded.
    `free` is what the device has now.
    """

    device: str
    weights: int
    workspace: int
    page: int
    longest: int
    most: int
    kv: int | None
    free: int


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The engine takes requests. `free_slots` as in StepReport; `device_uuid` is that of its GPU.

    `weight_bytes` and `kv_bytes` are what its weights and its pool took.
    """

    device: str
    free_slots: int
    device_uuid: str | None = None
    weight_bytes: int = 0
    kv_bytes: int = 0


class StepReport(msgspec.Struct, frozen=True, tag=True):
    """What one step brought, or (with the same `step` as before) an answer without a step.

    `received` counts the places that all submits so far wanted; `free_slots` is how many more are free after them.
    `pong` is the number of the last ping. `stats` comes about once a second. `admitted` are requests that began, each
    with how many tokens of its prompt were in the cache. `shares` split the step's time over who ran in it, `measures`
    are of requests that ended. The step `began_at` and `ended_at` these times by the clock of the whole machine
    (`time.perf_counter`).
    """

    step: int
    received: int
    free_slots: int
    deltas: list[Delta] = []
    refusals: list[Refusal] = []
    ended: list[Ended] = []
    prompt_scores: list[PromptScores] = []
    pong: int = 0
    stats: dict[str, int | float] | None = None
    admitted: list[tuple[str, int]] = []
    shares: list[Share] = []
    measures: list[Measures] = []
    began_at: float = 0.0
    ended_at: float = 0.0


class Broken(msgspec.Struct, frozen=True, tag=True):
    """The process is about to end: the folder cannot be served, or a step failed, perhaps by the engine's fault."""

    code: str
    message: str


FromEngine = Loading | Needs | Ready | StepReport | Broken

encode: Final = msgspec.msgpack.Encoder().encode
decode_spec: Final = msgspec.msgpack.Decoder(EngineSpec).decode
decode_grant: Final = msgspec.msgpack.Decoder(Grant).decode
decode_commands: Final = msgspec.msgpack.Decoder(Commands).decode
decode_report: Final[Callable[[bytes], FromEngine]] = msgspec.msgpack.Decoder(FromEngine).decode
