"""The engine: requests of token ids in, tokens out, one step at a time.

One thread owns an engine. Between steps it may submit and abort; `step` schedules, runs the model and commits.
Where steps overlap, the next one is scheduled and launched first, behind that which is waited for and committed.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch

from penstock_engine.admission import Limits, admitted, check_tokens, grammars_for
from penstock_engine.batch import ScheduleBatch
from penstock_engine.bisection import lacks_memory, search
from penstock_engine.choices import LiveRequests
from penstock_engine.config import EngineConfig
from penstock_engine.determinism import check_determinism
from penstock_engine.errors import EngineBusy, InvalidRequest, QueueFull, ScoringFailed, StepFailed
from penstock_engine.flight import Flight
from penstock_engine.graphs import GraphPlan
from penstock_engine.kernel_choice import choose_kernels, loading_device, with_stored_kv
from penstock_engine.loading import Progress, load_model, resolve_dtype
from penstock_engine.measures import Meter
from penstock_engine.model_config import read_model_config
from penstock_engine.models import CausalLM
from penstock_engine.page_allocator import PageAllocator
from penstock_engine.profiling import kv_memory
from penstock_engine.radix_cache import NoCache, PrefixCache, RadixCache
from penstock_engine.request import FinishReason, Generation, Grammar, Request, SamplingParams
from penstock_engine.runner import ModelRunner
from penstock_engine.scheduler import Scheduler
from penstock_engine.sizing import KVShape, context_length, device_of, make_pool, pool_pages, resized, thread_count
from penstock_engine.stats import EngineStats, StepCounts, StepOutput
from penstock_engine.tables import RowTables
from penstock_engine.trace import StepTrace
from penstock_engine.weight_bytes import weight_bytes

if TYPE_CHECKING:
    from penstock_engine.grammar import Grammars, Matcher

SCORED_ID, WARM_UP_ID = "score", "warm-up"  # alone in flight, so they meet no other
WARM_UP_TOKENS = 6


class Engine:
    """Iteration-level continuous batching of one model on one device."""

    def __init__(self, model: CausalLM, config: EngineConfig, *, dtype: torch.dtype, max_model_len: int) -> None:
        device = device_of(config)
        shape = KVShape.of(model.config, config, dtype)
        graphs = GraphPlan.of(model, config, device, max_model_len)
        free = partial(kv_memory, model, config, shape, max_model_len=max_model_len, dtype=dtype)
        pages = pool_pages(config, shape, max_model_len, free)
        self.config = config
        self.model_config = model.config
        self.max_model_len = max_model_len
        self._shape = shape
        self._limits = Limits(
            vocab_size=model.config.vocab_size,
            max_model_len=max_model_len,
            pool_tokens=pages * config.page_size,
            eos_ids=model.config.eos_ids,
        )
        tables = RowTables(config.max_running, -(-max_model_len // config.page_size), config.page_size)
        cache: PrefixCache = RadixCache(config.page_size, config.kv_dtype) if config.prefix_cache else NoCache()
        self._allocator = PageAllocator(pages)
        self._cache = cache
        self._scheduler = Scheduler(
            max_running=config.max_running,
            token_budget=config.token_budget,
            policy=config.policy,
            allocator=self._allocator,
            cache=cache,
            tables=tables,
            fair_quantum=config.fair_quantum,
        )
        pool = make_pool(shape, pages, device)
        self._runner = ModelRunner(
            model,
            pool,
            tables,
            device,
            dtype,
            deterministic=config.deterministic,
            graphs=graphs,
            kernels=config.kernels,
        )
        self.kernels = {**model.kernels, **self._runner.told}
        self.weight_bytes, self.kv_token_bytes = weight_bytes(model), shape.page_bytes // shape.page_size
        if config.deterministic:
            vocabulary, size = model.config.vocab_size, config.page_size
            check_determinism(self._runner.forward, vocab_size=vocabulary, page_size=size, pages=pages)
        self._seeds = random.Random(config.seed)
        self._live = LiveRequests()
        self._meter = Meter()
        self._clock = time.time  # that of deadlines
        self._steady = time.perf_counter  # that of durations
        self.trace = StepTrace.of(config, pages, epoch=self._clock() - self._steady())
        self._grammars: Grammars | None = None  # from the first request that brings one
        self._overlaps = config.overlap == "on" or (config.overlap == "auto" and device.type == "cuda")
        self._flight: Flight | None = None  # launched behind the step that was told last
        self._pages_to_be: int | None = None  # of the pool, once nothing is in flight
        self._ended_at = -inf  # when that was
        self._arrivals = 0
        self._steps = 0
        self._generated = 0
        self._runs = 0

    @classmethod
    def from_folder(
        cls, folder: str | Path, config: EngineConfig | None = None, progress: Progress | None = None
    ) -> Self:
        """Load a Hugging Face folder (config.json, safetensors). Raises ModelLoadError, InvalidConfig.

        `progress` is called with (stage, done, total) while weights load.
        """
        folder = Path(folder)
        model_config = read_model_config(folder)
        config = with_stored_kv(config or EngineConfig(), model_config)
        dtype = resolve_dtype(config.dtype, model_config, folder)
        length = context_length(config, model_config)
        torch.set_num_threads(thread_count(config, model_config))
        device = device_of(config)
        place = loading_device(config, device, stored=model_config.format is not None)
        model = load_model(folder, model_config, positions=length, dtype=dtype, device=place, progress=progress)
        choose_kernels(model, config, dtype=dtype, threads=torch.get_num_threads(), device=device)
        return cls(model, config, dtype=dtype, max_model_len=length)

    def warm_up(self) -> None:
        """Run a small prefill and some steps of decoding, so that what is compiled on first use is compiled now.

        The first step of a shape runs layer by layer, a later one as a program: both are tried. CUDA graphs are
        captured. No trace shows it. Raises EngineBusy while requests are in flight, InvalidConfig, StepFailed.
        """
        if self._live:
            raise EngineBusy(len(self._live))
        self._runner.graphs.capture()
        self.kernels |= self._runner.told
        sampling = SamplingParams(temperature=0, max_tokens=WARM_UP_TOKENS, ignore_eos=True, prompt_logprobs=1)
        self.submit(Request(WARM_UP_ID, [0, 0], sampling))
        while self.has_work:
            self.step()
        self.trace.clear()

    def submit(self, request: Request) -> dict[int, FinishReason]:
        """Let `request` wait its turn. Raises RequestRefused, keeping nothing of it.

        Returns how those of its choices ended that its `output_ids` complete: no more will be said of them.
        """
        if request.id in self._live:
            raise InvalidRequest("id", f"{request.id!r} is in flight already; ids are unique among live requests")
        if len(self._scheduler.waiting) >= self.config.max_waiting:
            raise QueueFull(self.config.max_waiting)
        return self._admit(request)

    def _admit(self, request: Request, *, measured: bool = True) -> dict[int, FinishReason]:
        seed = self._seeds.getrandbits(64)
        choices = admitted(request, self._limits, arrival=self._arrivals, drawn_seed=seed)
        generations = choices.waiting
        if request.sampling.grammar is not None:
            self._constrain(generations, request.sampling.grammar)
        self._arrivals += 1
        self._live.add(request, len(generations))
        if measured:
            self._meter.queue(generations, self._steady())
        for generation in generations:
            self._scheduler.submit(generation)
        return choices.ended

    def _constrain(self, generations: list[Generation], grammar: Grammar) -> None:
        """Give each choice a matcher at the end of its output so far."""
        start = self._matcher(grammar)
        for generation in generations:
            generation.matcher = start.copy()
            generation.matcher.advance(generation.tokens[generation.prompt_len :])
            if generation.matcher.problem:
                raise InvalidRequest("output_ids", f"must satisfy the grammar: {generation.matcher.problem}")

    def _matcher(self, grammar: Grammar) -> "Matcher":
        if self._grammars is None:
            self._grammars = grammars_for(self.config.tokenizer, self._limits)
        return self._grammars.matcher(grammar)

    def abort(self, request_id: str, choice: int | None = None) -> bool:
        """Drop a request at once; the next step tells its measures alone. False if it has gone.

        Its pages are free at once, or where steps overlap with the end of the step in flight. With `choice` that one
        alone, while others go on. Raises InvalidRequest where best_of is above n.
        """
        if choice is not None and self._live.selects(request_id):
            raise InvalidRequest("choice", "must be None where best_of is above n: such choices end together")
        dropped = self._scheduler.abort(request_id, choice)
        if choice is None or (dropped and self._live.close_choice(request_id)):
            self._forget(request_id, told=dropped)
        elif dropped:
            self._meter.close_choice(request_id)
        self._drain()
        self._resize_if_due()
        return dropped

    def _forget(self, request_id: str, *, told: bool) -> None:
        self._live.discard([request_id])
        self._meter.end(request_id, "abort", self._steady())
        if told:
            self.trace.abort(request_id)

    def step(self) -> StepOutput:
        """Tell what came of one step. With `overlap`, the step after it has been launched by then.

        Raises StepFailed, having committed nothing, if the model runs nothing any more.
        """
        flight = self._flight or self._launch()
        self._flight = self._launch_behind(flight)
        self._end(flight)
        self._scheduler.expire(self._clock(), flight.batch)
        output = self._report(flight)
        self._drain()
        self._resize_if_due()
        return output

    def resize(self, kv_bytes: int) -> None:
        """Let K and V take so many bytes; where a step is in flight, once it has ended. Raises InvalidConfig.

        Who runs gives up its pages and is computed again, as after a preemption; cached prefixes are lost. No pool that
        held the longest request becomes too small for it.
        """
        self._pages_to_be = resized(self.config, self._shape, self.max_model_len, kv_bytes, now=self._allocator.total)
        self._resize_if_due()

    def _resize_if_due(self) -> None:
        if (pages := self._pages_to_be) is None or self._flight is not None:
            return
        self._pages_to_be = None
        if pages != self._allocator.total:
            self._resize(pages)

    def _resize(self, pages: int) -> None:
        self._scheduler.evacuate()
        self._allocator.resize(pages)
        self._runner.resize_pool(pages + 1)
        self._limits = replace(self._limits, pool_tokens=pages * self.config.page_size)

    def score(self, tokens: Sequence[int], start: int = 1) -> list[float]:
        """Natural log probabilities of tokens[start:], each given all before it, by one prefill in chunks.

        What comes before `start - 1` is taken from the prefix cache where it is there. `tokens` may fill the context.
        Raises RequestRefused, EngineBusy while requests are in flight, ScoringFailed, StepFailed.
        """
        if self._live:
            raise EngineBusy(len(self._live))
        if not 1 <= start < len(tokens):
            raise InvalidRequest("start", f"must be from 1 to {len(tokens) - 1}, the last of the {len(tokens)} tokens")
        check_tokens("tokens", tokens, self._limits)
        self._admit(Request(SCORED_ID, list(tokens), scored_from=start), measured=False)
        try:
            return self._scored()
        finally:
            self.abort(SCORED_ID)

    def _scored(self) -> list[float]:
        while True:
            output = self.step()
            if output.failed:
                raise ScoringFailed(output.failed[0].message)
            if output.prompt_logprobs:
                return output.prompt_logprobs[0].logprobs

    @property
    def has_work(self) -> bool:
        return bool(self._live)

    @property
    def progress(self) -> int:
        """Grows with every forward pass; where it stands still while there is work, a step is stuck."""
        return self._runner.forwards

    @property
    def free_slots(self) -> int:
        """How many more requests could start now; claiming more than that would leave them waiting here."""
        return self._scheduler.free_slots

    @property
    def kv_bytes(self) -> int:
        """What the KV pool takes of the device, its null page included."""
        return (self._allocator.total + 1) * self._shape.page_bytes

    def stats(self) -> EngineStats:
        scheduler, free, cached = self._scheduler, self._allocator.free_count, self._cache.evictable_count
        return EngineStats(
            steps=self._steps,
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            pages_total=self._allocator.total,
            pages_free=free,
            pages_cached=cached,
            pages_in_use=self._allocator.total - free - cached,
            tokens_generated=self._generated,
            tokens_computed=scheduler.computed_tokens,
            tokens_cached=scheduler.cached_tokens,
            preemptions=scheduler.preemptions,
            tokens_recomputed=scheduler.recomputed_tokens,
            prefix_queries=scheduler.queried_tokens,
            prefix_hits=scheduler.found_tokens,
            runs=self._runs,
            max_running=self.config.max_running,
            busy_seconds=self._meter.busy_seconds,
        )

    def _launch(self) -> Flight:
        flight = Flight(batch=self._scheduler.schedule(), started=self._steady())
        if flight.batch.generations:
            flight.launch(self._runner)
            self._scheduler.launched(flight.batch)
        return flight

    def _launch_behind(self, flight: Flight) -> Flight | None:
        """The step after `flight`, if it may be launched while that is in flight and there is anything to run."""
        flight.choose()  # what it chooses is read by the next one
        alone = not self._overlaps or flight.failed or not flight.batch.generations or self._pages_to_be is not None
        if alone or not self._scheduler.can_run_ahead:
            return None
        behind = self._launch()
        return behind if behind.batch.generations else None

    def _end(self, flight: Flight) -> None:
        """Wait for `flight` and commit it; then tokens can be chosen in the one behind it."""
        batch = flight.batch
        if not batch.generations:
            return
        self._steps += batch.is_live
        try:
            samples = flight.result()
        except Exception as cause:
            self._recover(batch, cause)
        else:
            self._scheduler.commit(batch, samples)
        if self._flight is not None:
            self._flight.choose()
        self._runner.copy(batch.tail_copies)
        self._runner.scrub(batch.dirty_pages)

    def _drain(self) -> None:
        """Where nobody is left, wait for the step in flight: it holds pages, and brings nothing."""
        if self._live or self._flight is None:
            return
        flight, self._flight = self._flight, None
        try:
            samples = flight.result()
        except Exception:  # whom it concerned has gone; if the device has too, the next step tells
            self._scheduler.retract(flight.batch)
        else:
            self._scheduler.commit(flight.batch, samples)
        self._runner.scrub(flight.batch.dirty_pages)

    def _recover(self, batch: ScheduleBatch, cause: Exception) -> None:
        """Find who made the step fail: they end, the others go on. What was launched behind it counts for nothing."""
        if self._flight is not None:
            behind, self._flight = self._flight.batch, None
            self._scheduler.retract(behind)
            batch.absorb(behind)
        self._scheduler.retract(batch)
        try:
            self._runner.probe()
        except Exception:
            raise StepFailed(self._steps, batch.request_ids, cause) from cause
        if lacks_memory(cause):
            self._scheduler.shrink()
        search(batch, self._runner.run, self._scheduler)

    def _report(self, flight: Flight) -> StepOutput:
        batch, now = flight.batch, self._steady()
        started, self._ended_at = max(flight.started, self._ended_at), now  # it waited for the step before
        self._meter.note(batch, started, now)
        if batch.generations:
            self.trace.record(started, now - started, batch, self.stats)
        self._runs += len(batch.generations)
        self._generated += len(batch.deltas)
        admitted = self._live.begin(batch.admitted)
        self._live.discard(failure.request_id for failure in batch.failures)
        deltas = self._live.tell(batch.deltas)
        running, waiting = len(self._scheduler.running), len(self._scheduler.waiting)
        return StepOutput(
            step=self._steps,
            deltas=deltas,
            failed=batch.failures,
            counts=StepCounts.of(batch, running=running, waiting=waiting),
            admitted=admitted,
            prompt_logprobs=batch.prompt_logprobs,
            measures=self._meter.take_ended(),
            shares=self._meter.take_shares(),
            started=started,
            ended=now,
        )
