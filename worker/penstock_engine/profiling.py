"""How much of a GPU's memory an engine can give to K and V: its largest steps are run first, and looked at.

    0                                                                                              all of it
    | weights, code | held by the largest steps | graphs | MARGIN | pool ............ | 1 - memory_share |
                                                ^ `Footprint.free` from here on

Torch keeps what a step took for the next one, so what is free after the largest steps is what they leave. A captured
graph has memory of its own: as much as a step that only decodes holds, and some for each graph.

What the share leaves is for what is not tried out: logits of whole prompts that are scored, contexts that layers in
torch gather, fragments. A step that finds no memory all the same is divided, and the batch shrinks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch

from penstock_engine.batch import ScheduleBatch
from penstock_engine.config import EngineConfig
from penstock_engine.errors import InvalidConfig
from penstock_engine.graphs import GraphPlan
from penstock_engine.models import CausalLM
from penstock_engine.request import Generation, Request, SamplingParams
from penstock_engine.runner import ModelRunner
from penstock_engine.sizing import KVShape, host_memory, make_pool
from penstock_engine.tables import RowTables

MIB = 1 << 20
MARGIN = 256 * MIB  # for code that is first loaded, and workspaces that are first made, by a later step
GRAPH_BYTES = 8 * MIB  # of one captured graph besides what its steps hold: an allowance, not measured
TORCH_CONTEXT = 1024  # of a step tried out in torch, which gathers every context: see the module
# Keeps every token but the last few in a nucleus, so that all of a row is sorted; looks at what was said, and tells.
DEMANDING = SamplingParams(
    temperature=1.0, top_p=0.999999, min_p=1e-6, repetition_penalty=1.1, logprobs=1, max_tokens=1, seed=0
)


class DeviceMemory(Protocol):
    """What a device says of its memory, in bytes."""

    def settle(self) -> None:
        """Give back what is held for nobody, and forget the peak."""

    def used(self) -> int:
        """What is in use."""
        ...

    def peak(self) -> int:
        """The most that was in use at once since `settle`."""
        ...

    def free(self) -> int:
        """What is neither in use nor held for later."""
        ...


@dataclass(frozen=True, slots=True)
class CudaMemory:
    """A GPU, as torch's allocator and the driver see it."""

    device: torch.device

    def settle(self) -> None:
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)

    def used(self) -> int:
        return torch.cuda.memory_allocated(self.device)

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated(self.device)

    def free(self) -> int:
        torch.cuda.synchronize(self.device)
        return int(torch.cuda.mem_get_info(self.device)[0])


@dataclass(frozen=True, slots=True)
class Footprint:
    """What the largest steps showed, in bytes."""

    free: int  # beside the weights and all that the steps held
    decode: int  # in use at most by a step that only decodes
    graphs: int = 0  # how many steps will be captured


def kv_memory(
    model: CausalLM,
    config: EngineConfig,
    shape: KVShape,
    *,
    max_model_len: int,
    dtype: torch.dtype,
    memory: DeviceMemory | None = None,
) -> int:
    """Bytes for K and V on the device where `model` lies, of whose memory `memory` tells; None asks the GPU itself.

    Raises InvalidConfig where the largest steps, or one context, do not fit.
    """
    device = next(model.parameters()).device
    if device.type != "cuda" and memory is None:
        return host_memory()
    pool = make_pool(shape, 1, device)

    def run(step: Rows) -> None:
        tables = RowTables(config.max_running, -(-max_model_len // config.page_size), config.page_size)
        runner = ModelRunner(model, pool, tables, device, dtype, deterministic=config.deterministic)
        runner.run(step.batch(tables))

    context = max_model_len if model.kernels["layers"].startswith("compiled") else min(max_model_len, TORCH_CONTEXT)
    decode, prefill = largest_steps(config, context)
    graphs = len(GraphPlan.of(model, config, device, max_model_len).buckets)
    found = measure(partial(run, decode), partial(run, prefill), memory or CudaMemory(device), graphs=graphs)
    # Where no length is asked for, requests beyond the pool are refused one by one; a step's prefill must fit.
    needed = max_model_len if config.max_model_len else min(max_model_len, config.token_budget)
    return room(found, shape, share=config.memory_share, context=needed)


@dataclass(frozen=True, slots=True)
class Rows:
    """A step of requests that are nobody's: (tokens of context, how many of them run) of each."""

    lens: Sequence[tuple[int, int]]
    sampling: SamplingParams

    def batch(self, tables: RowTables) -> ScheduleBatch:
        """All on the null page, which many may name and whose content nobody reads."""
        batch = ScheduleBatch(sum(extend_len for _, extend_len in self.lens))
        longest = [0] * max(context for context, _ in self.lens)
        for at, (context, extend_len) in enumerate(self.lens):
            tokens = longest if context == len(longest) else longest[:context]  # long ones are many: they share it
            request = Request(f"profile-{at}", tokens, self.sampling)
            generation = Generation(
                request, 0, at, tokens, prompt_len=context, limit=context + 1, stop_ids=frozenset(), seed=at
            )
            tables.admit(generation)
            generation.computed_len = context - extend_len
            batch.add(generation, extend_len)
        return batch


def largest_steps(config: EngineConfig, context: int) -> tuple[Rows, Rows]:
    """(decoding, prefill) of as many requests as may run.

    Decoding is at the end of `context` tokens, for which attention keeps sums. Prefill takes the whole token budget.
    """
    rows, budget = config.max_running, config.token_budget
    lens = [min(budget // rows + (at < budget % rows), context) for at in range(rows)]
    decoding = replace(DEMANDING, repetition_penalty=1.0)  # whose matter is what was said, not how long it was
    return Rows([(context, 1)] * rows, decoding), Rows([(length, length) for length in lens], DEMANDING)


def measure(decode: Callable[[], None], prefill: Callable[[], None], memory: DeviceMemory, *, graphs: int) -> Footprint:
    """Run both steps. Raises InvalidConfig where one finds no memory."""
    try:
        memory.settle()
        before = memory.used()
        decode()
        decoding = memory.peak() - before
        prefill()
    except torch.OutOfMemoryError as cause:
        remedy = "a step of so many tokens and requests finds no memory beside the weights; lower it, or max_running"
        raise InvalidConfig("token_budget", f"{remedy} ({cause})") from cause
    return Footprint(memory.free(), decoding, graphs)


def room(found: Footprint, shape: KVShape, *, share: float, context: int) -> int:
    """Bytes for the pool. Raises InvalidConfig, with the figures, where they hold less than `context` tokens."""
    graphs = found.graphs and found.decode + found.graphs * GRAPH_BYTES
    memory = int(max(0, found.free - graphs - MARGIN) * share)
    pages = max(0, memory // shape.page_bytes - 1)  # besides the null page
    if pages * shape.page_size >= context:
        return memory
    wanted = (-(-context // shape.page_size) + 1) * shape.page_bytes
    figures = (
        f"K and V of {context} tokens take {wanted / MIB:.0f} MiB, and for them there are {memory / MIB:.0f}:"
        f" {share:.0%} of the {found.free / MIB:.0f} that weights and the largest steps leave,"
        f" less {graphs / MIB:.0f} for graphs and {MARGIN / MIB:.0f} to spare"
    )
    remedies = "a smaller token_budget or max_running, 8 bits by quantization or kv_dtype"
    raise InvalidConfig("max_model_len", f"{figures}; give at most {pages * shape.page_size}, or {remedies}")
