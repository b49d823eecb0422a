"""Measures the tiles that may be chosen, and keeps those that are faster than what is written in code.

What a candidate answers is compared with the answer of the tile in code before it is timed, so that a fast wrong tile
is no choice. One that cannot be launched on this GPU, for want of shared memory, is passed over.
"""

import math
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from penstock_kernels.gpu import quant_matmul_8bit, quant_matmul_w4a16
from penstock_kernels.gpu.attention_tiles import Tiles, decode_tiles, device_capability, extend_tiles
from penstock_kernels.gpu.attention_variants import VARIANTS, Variant
from penstock_kernels.gpu.decode_attention import decode_attention
from penstock_kernels.gpu.extend_attention import extend_attention
from penstock_kernels.gpu.quant_matmul_8bit import block_matmul, channel_matmul
from penstock_kernels.gpu.quant_matmul_w4a16 import dequantize_int4, tile_for, w4a16_matmul
from penstock_kernels.gpu.split_k import Tile, processors, split_arrivals
from penstock_kernels.gpu.tile_candidates import (
    CANDIDATES,
    DECODE,
    EXTEND,
    FP8,
    FP8_BLOCKS,
    FUSED,
    INT8,
    W4A16,
    Choice,
    Limit,
    attention_class,
    rows_class,
)
from penstock_kernels.gpu.tuning import Measured
from penstock_kernels.quant_formats import Int4Codes
from penstock_kernels.quant_int4 import Int4Weight, pack_int4
from penstock_kernels.quant_matmul import BlockWeight, ChannelWeight
from penstock_kernels.quant_rows import quantize_fp8, quantize_fp8_blocks, quantize_fp8_runs, quantize_int8
from torch import Tensor

from bench.kernel_parts.heavy import GROUP, PagedRuns
from bench.kernel_parts.timing import cache_bytes, sets_needed, timed

GAIN = 0.98  # of the time in code: what is not faster by more is noise, and what is in code has its reasons
APART = {torch.float16: 2e-3, torch.bfloat16: 2e-2}  # relative, of two right answers
Run = Callable[[Choice], Tensor]


@dataclass(frozen=True, slots=True)
class Workload:
    """At what sizes each class is measured: Llama-3.1-8B's layers, unless told."""

    device: str = "cuda"
    dtype: torch.dtype = torch.bfloat16
    weight: tuple[int, int] = (4096, 14336)  # N, K
    decoding: tuple[int, int] = (64, 1024)  # runs, context
    prefill: int = 4096
    crossing: tuple[int, ...] = (96, 192, 384, 768, 1536)  # rows, one between each two limits

    def random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self.device).to(self.dtype)


@dataclass(frozen=True, slots=True)
class Trial:
    """One class of one kernel: `make` makes inputs and returns the call, given a choice, that is to be fast on them."""

    kernel: str
    shapes: str
    in_code: Choice
    moved: int  # bytes of one set of inputs
    make: Callable[[], Run]
    candidates: tuple[Choice, ...] = ()


Measure = Callable[[Trial], dict[Choice, float]]  # seconds of those that run; of what is in code always


def sweep(trials: Iterable[Trial], measure: Measure) -> Iterator[tuple[tuple[str, str], Measured]]:
    """(kernel, shapes) of each trial, with the fastest tile: what is in code, unless another gains something."""
    for trial in trials:
        seconds = measure(trial)
        in_code = seconds[trial.in_code]
        best = min(seconds, key=lambda choice: seconds[choice])
        chosen = best if seconds[best] < GAIN * in_code else trial.in_code
        yield (trial.kernel, trial.shapes), Measured(chosen, seconds[chosen], in_code)


@torch.inference_mode()
def measure_on(work: Workload, trial: Trial) -> dict[Choice, float]:
    """Every candidate's seconds, over inputs that no cache holds. Those that fail or answer otherwise are left out."""
    sets = [trial.make() for _ in range(sets_needed(trial.moved, cache_bytes(work.device)))]
    wanted = _taken(sets[0](trial.in_code))
    # All are looked at before any is timed, for timing leaves a right answer in memory.
    problems = {choice: _problem(sets[0], choice, wanted, APART[work.dtype]) for choice in trial.candidates}
    for choice, problem in problems.items():
        if problem:
            print(f"{trial.kernel}, {trial.shapes}: {choice} is passed over: {problem}", file=sys.stderr)
    sound = [trial.in_code, *(choice for choice, problem in problems.items() if not problem)]
    return {choice: timed([partial(run, choice) for run in sets], work.device).seconds for choice in sound}


def _problem(run: Run, choice: Choice, wanted: Tensor, bound: float) -> str:
    """Empty where `choice` answers as it should."""
    try:
        apart = float((_taken(run(choice)) - wanted).norm() / wanted.norm())
    except Exception as cause:  # of the compiler or the driver, whose errors have no common ancestor
        return f"{type(cause).__name__}: {cause}".splitlines()[0]
    return "" if apart < bound else f"its answer is {apart:.2g} from that of the tile in code"


def _taken(answer: Tensor) -> Tensor:
    """A copy in float64. The memory is left full of NaN: the next one to answer there has to write all of it."""
    copy = answer.double()
    answer.fill_(torch.nan)
    return copy


def trials(work: Workload) -> list[Trial]:
    """Every class that has candidates."""
    everything = [*_attention_trials(work), *_int4_trials(work), *_eight_bit_trials(work), _crossing_trial(work)]
    known = [replace(each, candidates=CANDIDATES.get((each.kernel, each.shapes), ())) for each in everything]
    return [trial for trial in known if trial.candidates]


def _attention_trials(work: Workload) -> Iterator[Trial]:
    """The first layer of each class."""
    seen: set[tuple[str, str]] = set()
    for layer in (each for each in VARIANTS if each.dtype == torch.bfloat16):
        for kernel, tiles_of, attend in (
            (EXTEND, extend_tiles, extend_attention),
            (DECODE, decode_tiles, decode_attention),
        ):
            shapes = attention_class(layer)
            if (kernel, shapes) not in seen:
                seen.add((kernel, shapes))
                tiles = tiles_of(layer, device_capability(torch.device(work.device)))
                runs, context = work.decoding if kernel == DECODE else (1, work.prefill)
                moved = 2 * runs * context * layer.kv_heads * layer.head_dim * work.dtype.itemsize
                make = partial(attention_run, work, layer, attend, runs, context, kernel == DECODE)
                yield Trial(kernel, shapes, tiles, moved, make)


def attention_run(
    work: Workload, layer: Variant, attend: Callable[..., None], runs: int, context: int, decoding: bool
) -> Run:
    given = PagedRuns.draw(work.device, work.dtype, layer, runs, 1 if decoding else context, context)

    def run(choice: Choice) -> Tensor:
        assert isinstance(choice, Tiles)
        return given.answer(attend, tiles=choice.holding(layer.group))

    return run


def _int4(work: Workload) -> Int4Weight:
    n, k = work.weight
    codes = torch.randint(0, 16, (n, k), device=work.device).to(torch.uint8)
    scales = (torch.rand(n, k // GROUP, device=work.device) * 0.01 + 0.001).to(work.dtype)
    return pack_int4(Int4Codes(codes, scales, torch.full((n, k // GROUP), 8, dtype=torch.uint8, device=work.device)))


def _int4_trials(work: Workload) -> Iterator[Trial]:
    n, k = work.weight
    for tile in quant_matmul_w4a16._TILES:
        yield Trial(W4A16, rows_class(tile), tile, n * k // 2, partial(_int4_run, work, tile.rows))


def _int4_run(work: Workload, rows: int) -> Run:
    packed, x, arrivals = _int4(work), work.random(rows, work.weight[1]), split_arrivals(work.device)
    return lambda choice: w4a16_matmul(x, packed, arrivals=arrivals, tile=_split(choice, rows, work))


def _split(choice: Choice, rows: int, work: Workload) -> Tile:
    assert isinstance(choice, Tile)
    return choice.split_for(rows, *work.weight, processors(torch.device(work.device)))


def _crossing_trial(work: Workload) -> Trial:
    """Up to which number of rows the fused product is faster than dequantizing and cuBLAS: all numbers, one by one."""
    return Trial(
        W4A16, FUSED, Limit(quant_matmul_w4a16.FUSED_ROWS), math.prod(work.weight) // 2, partial(_crossing, work)
    )


def _crossing(work: Workload) -> Run:
    packed, arrivals = _int4(work), split_arrivals(work.device)
    given = [work.random(rows, work.weight[1]) for rows in work.crossing]

    def product(x: Tensor, limit: int) -> Tensor:
        if len(x) > limit:
            return F.linear(packed.activations(x), dequantize_int4(packed, x.dtype))
        tile = tile_for(len(x), packed.n, packed.k, processors(x.device))
        return w4a16_matmul(x, packed, arrivals=arrivals, tile=tile)

    def run(choice: Choice) -> Tensor:
        assert isinstance(choice, Limit)
        return torch.cat([product(x, choice.rows) for x in given])

    return run


def _eight_bit_trials(work: Workload) -> Iterator[Trial]:
    for kernel, make in ((INT8, _int8_run), (FP8, _fp8_run), (FP8_BLOCKS, _blocks_run)):
        for tile in quant_matmul_8bit._TILES[kernel]:
            yield Trial(kernel, rows_class(tile), tile, math.prod(work.weight), partial(make, work, tile.rows))


def _int8_run(work: Workload, rows: int) -> Run:
    weight = ChannelWeight(*quantize_int8(work.random(*work.weight)))
    return _channel_run(work, rows, weight, *quantize_int8(work.random(rows, work.weight[1])))


def _fp8_run(work: Workload, rows: int) -> Run:
    weight = ChannelWeight(*quantize_fp8(work.random(*work.weight)))
    return _channel_run(work, rows, weight, *quantize_fp8(work.random(rows, work.weight[1])))


def _channel_run(work: Workload, rows: int, weight: ChannelWeight, codes: Tensor, scales: Tensor) -> Run:
    arrivals = split_arrivals(work.device)
    return lambda choice: channel_matmul(
        codes, scales, weight, None, work.dtype, arrivals=arrivals, tile=_split(choice, rows, work)
    )


def _blocks_run(work: Workload, rows: int) -> Run:
    weight = BlockWeight(*quantize_fp8_blocks(work.random(*work.weight)))
    codes, scales = quantize_fp8_runs(work.random(rows, work.weight[1]))
    arrivals = split_arrivals(work.device)
    return lambda choice: block_matmul(
        codes, scales, weight, None, work.dtype, arrivals=arrivals, tile=_split(choice, rows, work)
    )
