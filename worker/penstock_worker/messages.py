"""What the worker and an engine process say to each other: msgpack over a pipe, one message a step each way.

The worker's first message is an `EngineSpec`, every later one `Commands`. The engine process answers with
`Loading`, then `Ready` (or `Broken`), then a `StepReport` after every step and after every command that
changed something.
"""

from collections.abc import Callable
from typing import Final

import msgspec


class EngineSpec(msgspec.Struct, frozen=True):
    """Which folder to load, and within which limits. `device` is auto, cpu or cuda[:N]; `kv_bytes` None is measured.

    With a `trace_folder` the engine's last steps are recorded in a file there whose name begins with `name`.
    """

    folder: str
    max_running: int
    device: str = "auto"
    kv_bytes: int | None = None
    threads: int | None = None
    name: str = ""
    trace_folder: str | None = None


class Sampling(msgspec.Struct, frozen=True, array_like=True):
    """How tokens are chosen; the fields are those of the engine's own sampling parameters."""

    temperature: float
    top_k: int
    top_p: float
    seed: int
    max_tokens: int | None
    min_tokens: int
    stop_token_ids: list[int]
    ignore_eos: bool
    logprobs: int | None


class Submit(msgspec.Struct, frozen=True, array_like=True):
    """One request. `output_ids` are the tokens that earlier runs generated, a list for each choice."""

    request_id: str
    prompt_ids: list[int]
    output_ids: list[list[int]]
    sampling: Sampling
    namespace: str
    priority: int
    request_class: str


class Commands(msgspec.Struct, frozen=True):
    """All that was asked since the last message. Submits come before aborts; `ping` is answered by its number."""

    submits: list[Submit] = []
    aborts: list[str] = []
    ping: int = 0
    paused: bool = False
    stop: bool = False


class Delta(msgspec.Struct, frozen=True, array_like=True):
    """One token of one request; `finish_reason` comes with its last."""

    request_id: str
    choice: int
    token_id: int
    logprob: float | None
    finish_reason: str | None


class Refusal(msgspec.Struct, frozen=True, array_like=True):
    """A request that the engine refused or gave up, and why. `finish_reason`: it had ended before it was submitted."""

    request_id: str
    code: str
    message: str
    finish_reason: str | None = None


class Loading(msgspec.Struct, frozen=True, tag=True):
    """How far loading has come: 0 to 1."""

    progress: float


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The engine takes requests. `free_slots` as in StepReport."""

    device: str
    free_slots: int


class StepReport(msgspec.Struct, frozen=True, tag=True):
    """What one step brought, or (with the same `step` as before) an answer without a step.

    `received` counts every submit that was taken so far; `free_slots` is how many more could start after them. `pong`
    is the number of the last ping. `stats` comes about once a second. `admitted` are requests that began, each with
    how many tokens of its prompt were in the cache.
    """

    step: int
    received: int
    free_slots: int
    deltas: list[Delta] = []
    refusals: list[Refusal] = []
    pong: int = 0
    stats: dict[str, int] | None = None
    admitted: list[tuple[str, int]] = []


class Broken(msgspec.Struct, frozen=True, tag=True):
    """The process is about to end: the folder cannot be served, or a step failed, perhaps by the engine's fault."""

    code: str
    message: str


FromEngine = Loading | Ready | StepReport | Broken

encode: Final = msgspec.msgpack.Encoder().encode
decode_spec: Final = msgspec.msgpack.Decoder(EngineSpec).decode
decode_commands: Final = msgspec.msgpack.Decoder(Commands).decode
decode_report: Final[Callable[[bytes], FromEngine]] = msgspec.msgpack.Decoder(FromEngine).decode
