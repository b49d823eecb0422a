"""How an engine is set up."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from penstock_engine.errors import InvalidConfig

DType = Literal["bfloat16", "float16", "float32", "auto"]
Quantization = Literal["int8", "int4", "fp8"]
KVDType = Literal["auto", "int8", "fp8"]
Kernels = Literal["auto", "compiled", "torch"]
Graphs = Literal["auto", "off"]
Overlap = Literal["auto", "on", "off"]
Policy = Literal["continuous", "static", "request"]


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Limits, memory and placement of one engine.

    `token_budget` is the most tokens that one step runs through the model: decoding requests take one each, prefill
    chunks share the rest. `kv_pages` sets the KV pool in pages of `page_size` tokens; without it `kv_bytes` does;
    without both a share of free memory, at most what `max_running` full contexts need. On a GPU that is `memory_share`
    of what its largest steps leave, which are tried out first. `max_model_len` None is the model's own. `threads` None
    is one for a small model and torch's setting for a larger one. `seed` seeds the seeds drawn for requests that bring
    none. `tokenizer` is the path of the model's tokenizer.json, from which grammars learn the bytes of each token;
    nothing else needs it.

    `policy` is when waiting requests are let in: `continuous` at every step, `static` only when a whole batch has
    ended, `request` one at a time. The last two are there to be measured against. `fair_quantum` is by how much
    service, in input tokens (an output token counts two), one tenant may be ahead before the other goes first.
    With `deterministic`, a request's tokens and log probabilities are the same to the bit whoever else is in the batch,
    cached, preempted or resumed; tried out at start, and slower. `trace_steps` is how many of the last steps are
    kept on record.

    `quantization` rounds the weights while they load, to 8 bits for each output (whole numbers, or fp8: e4m3) or to 4
    bits for each group of inputs; it needs compiled kernels. On a CPU the head has 8 bits any way, and activations are
    rounded to 8 bits at every product; on a GPU the head stays as it is, and int4 rounds no activations.
    `kv_dtype` keeps K and V in 8 bits, with a scale for each token and head, by compiled kernels too; auto keeps them
    as they are computed, unless the checkpoint says otherwise.
    `kernels` chooses those: `auto` takes compiled ones where this machine runs them, and `Engine.kernels` tells.
    `graphs` has steps that only decode recorded as CUDA graphs by `warm_up`, where the device and the model take it.
    With `overlap` each step is launched before the one ahead of it has ended, so that a GPU never waits for the host;
    `auto` does so on a GPU. It changes no token.
    """

    max_running: int = 64
    max_waiting: int = 4096
    token_budget: int = 512
    page_size: int = 16
    kv_pages: int | None = None
    kv_bytes: int | None = None
    kv_dtype: KVDType = "auto"
    memory_share: float = 0.9
    max_model_len: int | None = None
    device: str = "cpu"
    dtype: DType = "auto"
    threads: int | None = None
    prefix_cache: bool = True
    policy: Policy = "continuous"
    seed: int = 0
    tokenizer: str | None = None
    fair_quantum: int = 1024
    deterministic: bool = False
    trace_steps: int = 0
    quantization: Quantization | None = None
    kernels: Kernels = "auto"
    graphs: Graphs = "auto"
    overlap: Overlap = "auto"

    def __post_init__(self) -> None:
        for field in ("max_running", "max_waiting", "token_budget", "page_size", "fair_quantum"):
            _require(getattr(self, field) >= 1, field, "must be at least 1")
        _require(self.trace_steps >= 0, "trace_steps", "must be at least 0")
        for field in ("kv_pages", "kv_bytes", "max_model_len", "threads"):
            value = getattr(self, field)
            _require(value is None or value >= 1, field, "must be at least 1, or None")
        _require(
            self.token_budget >= self.max_running,
            "token_budget",
            f"must be at least max_running ({self.max_running}): each running request takes a token per step",
        )
        _require(
            self.dtype in ("bfloat16", "float16", "float32", "auto"),
            "dtype",
            "must be bfloat16, float16, float32 or auto",
        )
        _require(self.quantization in ("int8", "int4", "fp8", None), "quantization", "must be int8, int4, fp8 or None")
        _require(self.kv_dtype in ("auto", "int8", "fp8"), "kv_dtype", "must be auto, int8 or fp8")
        _require(0 < self.memory_share <= 1, "memory_share", "must be above 0, and at most 1")
        _require(self.kernels in ("auto", "compiled", "torch"), "kernels", "must be auto, compiled or torch")
        _require(self.graphs in ("auto", "off"), "graphs", "must be auto or off")
        _require(self.overlap in ("auto", "on", "off"), "overlap", "must be auto, on or off")
        _require(self.policy in ("continuous", "static", "request"), "policy", "must be continuous, static or request")
        there = self.tokenizer is None or Path(self.tokenizer).is_file()
        _require(there, "tokenizer", f"must be the path of a tokenizer.json, or None; there is no {self.tokenizer}")


def _require(holds: bool, field: str, remedy: str) -> None:
    if not holds:
        raise InvalidConfig(field, remedy)
