"""A part: Penstock's engine in one precision, set up as it serves, on random weights made where they are used.

Decoding is timed from the fourth token of the last sequence on, in a window in which every sequence decodes and
nothing else runs; a step that is told late, because steps overlap, shifts the window and not its length.
"""

import gc
import json
import random
import statistics
import tempfile
import time
from pathlib import Path

import torch
from penstock_engine import Engine, EngineConfig, InvalidConfig, Request, SamplingParams
from penstock_engine.kernel_choice import choose_kernels
from penstock_engine.model_config import ModelConfig, read_model_config
from penstock_engine.models import MODELS, DecoderLM

from bench.gpu_parts.busy import gpu_seconds
from bench.gpu_parts.job import Job, costing, job
from bench.gpu_parts.shapes import Plan, Shape

SPREAD = 0.02  # standard deviation of the weights
SETTLED = 4  # tokens that each sequence has said before the window begins
PROFILED_STEPS = 8
ROUNDS = 3
PAGE = EngineConfig().page_size


def make_model(shape: Shape, positions: int, device: torch.device) -> DecoderLM:
    """A model of `shape` with normal weights, drawn on `device`: no file of weights is written or read."""
    torch.manual_seed(0)
    model = MODELS["llama"](model_config(shape), positions, torch.bfloat16, device)
    for _, weight in model.checkpoint_views():
        if weight.ndim == 1:
            weight.fill_(1.0)
        else:
            weight.normal_(0, SPREAD)
    return model.eval()


def model_config(shape: Shape) -> ModelConfig:
    """As it is read from a folder that says so."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(shape.config))
        return read_model_config(Path(folder))


def make_engine(job: Job, **options: object) -> Engine:
    """Ready to run: what is compiled or captured on first use is. Raises InvalidConfig."""
    plan, device = job.shape.plan, torch.device(job.device)
    length = longest(plan)
    config = EngineConfig(
        device=job.device,
        dtype="bfloat16",
        max_running=max(plan.batches),
        token_budget=plan.budget,
        kv_pages=pages(plan),
        max_model_len=length,
        quantization=job.precision.quantization,
        kv_dtype=job.precision.kv_dtype,
        **options,  # type: ignore[arg-type]  # named by the caller
    )
    model = make_model(job.shape, length, device)
    choose_kernels(model, config, dtype=torch.bfloat16, threads=torch.get_num_threads(), device=device)
    engine = Engine(model, config, dtype=torch.bfloat16, max_model_len=length)
    engine.warm_up()
    return engine


def decoding(plan: Plan) -> int:
    """Tokens that the first sequence says: it decodes while all others are prefilled, and through the window."""
    waiting = -(-max(plan.batches) * plan.context // plan.budget)
    return waiting + plan.steps + PROFILED_STEPS + 4 * SETTLED


def longest(plan: Plan) -> int:
    """Tokens of the longest sequence."""
    return max(plan.context + decoding(plan), plan.length + 1)


def pages(plan: Plan) -> int:
    """Enough for all at their longest, so that nobody is preempted."""
    decoded = max(plan.batches) * (-(-(plan.context + decoding(plan)) // PAGE) + 1)
    return max(decoded, plan.prompts * (-(-plan.length // PAGE) + 1))


class Drive:
    """Requests on their way through an engine, and what each has said."""

    def __init__(self, engine: Engine, count: int, length: int, output: int) -> None:
        draw = random.Random(f"{count} {length} {output} {engine.stats().steps}")  # no prefix was met before
        vocabulary = engine.model_config.vocab_size
        sampling = SamplingParams(temperature=0, max_tokens=output, ignore_eos=True, logprobs=None)
        self._engine = engine
        self.said = dict.fromkeys((str(at) for at in range(count)), 0)
        for name in self.said:
            engine.submit(Request(name, [draw.randrange(vocabulary) for _ in range(length)], sampling))

    def step(self) -> None:
        output = self._engine.step()
        assert not output.failed, output.failed[0].message
        for delta in output.deltas:
            self.said[delta.request_id] += 1

    def until(self, tokens: int) -> None:
        """Step until each has said `tokens` at least."""
        while min(self.said.values()) < tokens:
            self.step()

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.step()

    @property
    def all_said(self) -> int:
        return sum(self.said.values())

    def end(self) -> None:
        for name in self.said:
            self._engine.abort(name)
        while self._engine.has_work:
            self._engine.step()


def settle(job: Job) -> None:
    if job.on_gpu:
        torch.cuda.synchronize()


def free_memory(job: Job) -> None:
    """An engine's parts know one another, so that its pool outlives the last word of it."""
    gc.collect()
    if job.on_gpu:
        torch.cuda.empty_cache()


def decode(job: Job, engine: Engine, batch: int, who: str) -> None:
    """One row: tokens per second of `batch` sequences that decode, and how much of a step is not the GPU's."""
    plan = job.shape.plan
    drive = Drive(engine, batch, plan.context, decoding(plan))
    drive.until(SETTLED)
    settle(job)
    before, start = drive.all_said, time.perf_counter()
    drive.steps(plan.steps)
    settle(job)
    seconds, told = time.perf_counter() - start, drive.all_said - before
    assert told == batch * plan.steps, f"{told} tokens came in {plan.steps} steps of {batch}"
    context = plan.context + before / batch + plan.steps / 2
    busy = gpu_seconds(lambda: drive.steps(PROFILED_STEPS)) if job.on_gpu else None
    drive.end()
    step = seconds / plan.steps
    job.tell(
        "decode",
        who,
        batch=batch,
        context=context,
        tokens_per_s=batch / step,
        seconds=step,
        gpu_seconds=None if busy is None else busy / PROFILED_STEPS,
        not_gpu=None if busy is None else max(0.0, 1 - busy / PROFILED_STEPS / step),
        **costing(job.shape.decode(batch, context, job.precision)),
    )


def prefill(job: Job, engine: Engine, who: str) -> None:
    """One row: prompts of which each says one token, the median of some rounds."""
    plan, times = job.shape.plan, []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        drive = Drive(engine, plan.prompts, plan.length, 1)
        drive.until(1)
        settle(job)
        times.append(time.perf_counter() - start)
        drive.end()
    seconds, tokens = statistics.median(times), plan.prompts * plan.length
    cost = costing(job.shape.prefill(plan.prompts, plan.length, job.precision))
    job.tell("prefill", who, batch=plan.prompts, tokens_per_s=tokens / seconds, seconds=seconds, **cost)


def run(job: Job) -> None:
    """All batches, then a prefill; and in bf16 the smallest batches again without graphs, and without overlap."""
    who = f"penstock {job.precision.name}"
    try:
        engine = make_engine(job)
    except InvalidConfig as refusal:
        job.tell("decode", who, missing=str(refusal))
        return
    job.tell("engine", who, kernels=engine.kernels, memory=torch.cuda.memory_allocated() if job.on_gpu else 0)
    prefill(job, engine, who)
    for batch in job.shape.plan.batches:
        decode(job, engine, batch, who)
    if job.precision.name == "bf16":
        for option in ("graphs", "overlap"):
            del engine
            free_memory(job)
            engine = make_engine(job, **{option: "off"})
            decode(job, engine, job.shape.plan.batches[0], f"{who}, no {option}")


if __name__ == "__main__":
    run(job())
