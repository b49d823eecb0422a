"""Decoding steps as CUDA graphs: a step's hundreds of launches recorded once, and launched by one call ever after.

    warm-up     for each bucket, largest first: run once, then record the run over buffers that stay where they are
    step        lay the batch out for the smallest bucket that holds it, copy that into the buffers, replay

What is recorded ends with the hidden states, a few megabytes in the largest bucket; the head runs after it, on the rows
that are real. All recordings share one memory pool, which the largest fills first, and one set of buffers: a step has
taken what it needs of them before the next is copied, for both go through one stream.

A bucket is a number of rows and a length of context. Rows that nobody needs are token 0 at position 0 of the null page:
they write there, read there, and are cut off. The length decides what is fixed in a launch, the width of the page table
and into how many splits attention cuts a context: one bucket for all lengths would start, for a model of 128k tokens,
32 programs for every one that has something to read. Lengths are 4 apart, so there are few.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count, product, takewhile
from typing import NamedTuple, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penstock_engine.config import EngineConfig
from penstock_engine.errors import InvalidConfig
from penstock_engine.forward_batch import ForwardBatch, Layout, Runs, TokenPlaces, resolved
from penstock_engine.kv_pool import KVPool
from penstock_engine.layers.attention import AttentionPlan
from penstock_engine.models import CausalLM, DecoderLM
from penstock_engine.page_allocator import NULL_PAGE
from penstock_engine.staging import Array, send_into, staged_bytes

MOST_ROWS = 512  # of a recorded step; a larger one is long enough for its launches not to show
SHORTEST_CONTEXT = 4096  # tokens: up to here attention cuts no context for its length alone


class Recording(Protocol):
    """A run that can be repeated."""

    @property
    def answer(self) -> Tensor:
        """Written by every replay."""

    def replay(self) -> None: ...


class Recorder(Protocol):
    def record(self, run: Callable[[], Tensor]) -> Recording:
        """Run `run` at least once, so that all is compiled that it needs, and record it."""


@dataclass(frozen=True, slots=True)
class CudaRecording:
    answer: Tensor
    graph: torch.cuda.CUDAGraph

    def replay(self) -> None:
        self.graph.replay()


class CudaRecorder:
    """Recordings of one stream, in one memory pool."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch gives it no types
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, run: Callable[[], Tensor]) -> CudaRecording:
        with torch.cuda.device(self._device):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                run()  # compiles kernels, and has cuBLAS take its workspace: neither can be recorded
            graph = torch.cuda.CUDAGraph()
            # Other threads of the process may use the device meanwhile: what they do is none of this recording's.
            recording = torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local")
            with recording:
                answer = run()
        return CudaRecording(answer, graph)


RECORDERS: dict[str, Callable[[torch.device], Recorder]] = {"cuda": CudaRecorder}  # by type of device


class Bucket(NamedTuple):
    """What a recording holds: so many rows, of at most so many tokens of context."""

    rows: int
    context: int


@dataclass(frozen=True, slots=True)
class GraphPlan:
    """Which buckets are to be recorded, or what is in the way."""

    rows: tuple[int, ...]  # rising
    contexts: tuple[int, ...]  # rising
    obstacle: str = ""

    @classmethod
    def of(cls, model: CausalLM, config: EngineConfig, device: torch.device, max_model_len: int) -> Self:
        rows, contexts = row_buckets(config.max_running), context_buckets(max_model_len)
        return cls(rows, contexts, _obstacle(model, config, device))

    @property
    def buckets(self) -> list[Bucket]:
        """Largest first: what a smaller one needs fits into what a larger one took."""
        pairs = product(self.rows[::-1], self.contexts[::-1])
        return [] if self.obstacle else [Bucket(rows, context) for rows, context in pairs]

    def holding(self, rows: int, context: int) -> Bucket:
        """The smallest bucket of at least as many."""
        return Bucket(
            next(size for size in self.rows if size >= rows), next(size for size in self.contexts if size >= context)
        )


NO_GRAPHS = GraphPlan((), (), "nobody planned any")


def row_buckets(max_running: int) -> tuple[int, ...]:
    """1, 2, 4, 8, then 8, 16 and 32 apart: beyond 16 at most a third is padding, beyond 128 a fifth."""
    most = min(max_running, MOST_ROWS)
    sizes = (1, 2, 4, 8, *range(16, 32, 8), *range(32, 128, 16), *range(128, MOST_ROWS + 1, 32))
    return (*takewhile(lambda size: size < most, sizes), most)


def context_buckets(max_model_len: int) -> tuple[int, ...]:
    """4,096 tokens, four times that, and so on; the last is the longest context."""
    lengths = (SHORTEST_CONTEXT * 4**power for power in count())
    return (*takewhile(lambda length: length < max_model_len, lengths), max_model_len)


def _obstacle(model: CausalLM, config: EngineConfig, device: torch.device) -> str:
    """What keeps steps from being recorded, in words; empty if nothing does."""
    if config.graphs == "off":
        return "as asked for"
    if device.type not in RECORDERS:
        return f"the device is {device}"
    if config.deterministic:
        return "padding is a neighbour that the determinism lane's trial has not met"
    return model.unrecordable


class DecodeGraphs:
    """The recordings of one model over one pool; none before `capture`, and none where something is in their way."""

    def __init__(self, model: CausalLM, pool: KVPool, plan: GraphPlan, latest: Tensor) -> None:
        """`latest` [rows of the tables] holds each row's last token, for ids that the host does not know."""
        self._model, self._pool, self._plan, self._latest = model, pool, plan, latest
        self._device = latest.device
        self._landed = torch.empty(0)
        self._recordings: dict[Bucket, Recording] = {}

    @property
    def told(self) -> dict[str, str]:
        """What `Engine.kernels` says of it: nothing where the device has no such thing."""
        if self._device.type not in RECORDERS:
            return {}
        if self._plan.obstacle:
            return {"graphs": f"off ({self._plan.obstacle})"}
        captured = len(self._recordings)
        return {"graphs": f"{captured} buckets captured" if captured else "none captured before warm_up"}

    @torch.inference_mode()
    def capture(self) -> None:
        """Record every bucket, unless that is done. Raises InvalidConfig where one cannot be."""
        if self._recordings or not self._plan.buckets:
            return
        self._landed = torch.zeros(
            staged_bytes(self._arrays(self._plan.buckets[0])), dtype=torch.uint8, device=self._device
        )
        recorder = RECORDERS[self._device.type](self._device)
        self._recordings = {bucket: self._record(recorder, bucket) for bucket in self._plan.buckets}
        self._pool.zero([NULL_PAGE])

    def capture_again(self) -> None:
        """Record anew what is recorded: the pool lies elsewhere. Raises InvalidConfig."""
        if self._recordings:
            self._recordings = {}
            self.capture()

    def takes(self, layout: Layout) -> bool:
        """Whether there is a recording for a step like this."""
        return bool(self._recordings) and layout.decodes and len(layout.rows) <= self._plan.rows[-1]

    def logits(self, layout: Layout) -> Tensor:
        """The answer to a step that `takes` said yes to, [rows, vocabulary] in float32."""
        bucket = self._plan.holding(len(layout.rows), int(layout.places.positions.max()) + 1)
        send_into(self._landed, self._arrays(bucket, layout))
        recording = self._recordings[bucket]
        recording.replay()
        return _native(self._model).logits(recording.answer[: len(layout.rows)])

    def _arrays(self, bucket: Bucket, layout: Layout | None = None) -> list[Array]:
        """All that a recording reads and that is not the model's: `layout`, and padding up to `bucket`.

        ids, rows, positions, slots, first queries, lengths of context and page table; none of it may lie elsewhere, as
        memory that is given back after the recording would be another's when it is replayed.
        """
        ids, rows, positions = (np.zeros(bucket.rows, np.int64) for _ in range(3))
        slots = np.full(bucket.rows, NULL_PAGE * self._pool.page_size, np.int64)
        starts, lens = np.arange(bucket.rows + 1, dtype=np.int32), np.ones(bucket.rows, np.int32)
        pages = np.full((bucket.rows, -(-bucket.context // self._pool.page_size)), NULL_PAGE, np.int32)
        if layout is not None:
            real, places = slice(len(layout.rows)), layout.places
            ids[real], rows[real], positions[real] = layout.ids, layout.rows, places.positions
            slots[real], lens[real] = places.slots, places.positions + 1
            width = min(pages.shape[1], places.pages.shape[1])
            pages[real, :width] = places.pages[layout.rows, :width]
        return [ids, rows, positions, slots, starts, lens, pages]

    def _record(self, recorder: Recorder, bucket: Bucket) -> Recording:
        ids, rows, positions, slots, starts, lens, pages = send_into(self._landed, self._arrays(bucket))
        runs = Runs(pages, starts, lens, max_query_len=1, max_context_len=bucket.context)

        def run() -> Tensor:
            batch = ForwardBatch(
                input_ids=resolved(ids, rows, self._latest),
                positions=positions,
                slots=slots,
                sample_at=None,
                tokens=_NOWHERE,
                plan=_unplanned,
                pool=self._pool,
                known_runs=runs,
            )
            return _native(self._model).states(batch)

        try:
            return recorder.record(run)
        except Exception as cause:
            remedy = f"a step of {bucket.rows} rows and {bucket.context} tokens cannot be recorded ({cause}); use 'off'"
            raise InvalidConfig("graphs", remedy) from cause


def _native(model: CausalLM) -> DecoderLM:
    assert isinstance(model, DecoderLM)  # no other is recordable
    return model


def _unplanned() -> AttentionPlan:
    raise NotImplementedError("a recorded step's attention reads where everything lies on the device")


_NONE: NDArray[np.int64] = np.zeros(0, np.int64)
_NOWHERE = TokenPlaces(np.zeros((0, 0), np.int32), _NONE, _NONE, _NONE, 0)
