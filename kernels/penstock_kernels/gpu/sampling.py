"""Sampling without a sort and without a word to the host, bit for bit as `penstock_kernels.sampling` defines it.

    peaks      program per (row, chunk)   the chunk's largest logit
    tally      program per (row, chunk)   the chunk's weight; how many of its tokens lie in each eighth of an octave
    plan       program per row            how many of those bins fit into CANDIDATES tokens, and where each chunk's go
    collect    program per (row, chunk)   the likeliest tokens of a filtered row, side by side, in id order
    choose     program per row            filters by bisection of the gap's bits, then the draw

A row without top-k and top-p needs no candidates: `choose` finds the chunk by the chunks' weights and the token in it.
Where the candidates do not settle the filters (a flat distribution, a wide top-k), `choose` bisects over the whole
row: right in every case, and slow only there. Logits are read three times (4 with filters); at 128k tokens a row is
half a megabyte and stays in the second-level cache between the passes.

Sums are of whole numbers, so neither chunks nor tiles nor the rest of the batch can change a token. Compiled without
fused multiply-add: see the definition.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from penstock_kernels.checks import ShapeError, check_dense, check_dtype, check_same_device, check_shape
from penstock_kernels.gpu.cases import CompileCase
from penstock_kernels.gpu.sampling_kernels import (
    choose_kernel,
    collect_kernel,
    peaks_kernel,
    plan_kernel,
    tally_kernel,
)

CHUNK = 4096  # 16 logits to a thread of 8 warps
BINS = 256  # eighths of an octave: the 32 octaves that weights span
CANDIDATES = 2048
WARPS = 8


def sample(
    logits: Tensor,
    *,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seed: Tensor,
    output_index: Tensor,
    choice: Tensor,
) -> Tensor:
    """As `penstock_kernels.sampling.sample`."""
    floats = {"temperature": temperature, "top_p": top_p, "min_p": min_p}
    whole = {"top_k": top_k, "seed": seed, "output_index": output_index, "choice": choice}
    _check(logits, floats, whole)
    rows, vocabulary = logits.shape
    tokens = torch.empty(rows, dtype=torch.int64, device=logits.device)
    if rows == 0:
        return tokens
    chunks = triton.cdiv(vocabulary, CHUNK)
    arguments: dict[str, object] = {"logits": logits, "tokens": tokens, **floats, **whole}
    arguments |= {"vocabulary": vocabulary, "stride": logits.stride(0), "chunks": chunks}
    arguments |= _constants(vocabulary) | _scratch(rows, _padded(chunks), logits.device)
    _run(peaks_kernel, (rows, chunks), arguments)
    _run(tally_kernel, (rows, chunks), arguments)
    _run(plan_kernel, (rows,), arguments)
    _run(collect_kernel, (rows, chunks), arguments)
    _run(choose_kernel, (rows,), arguments)
    return tokens


def _run(kernel: Any, grid: tuple[int, ...], arguments: dict[str, object]) -> None:
    own = {name: arguments[name] for name in kernel.arg_names}
    kernel[grid](**own, num_warps=WARPS, enable_fp_fusion=False)


def _check(logits: Tensor, floats: dict[str, Tensor], whole: dict[str, Tensor]) -> None:
    check_shape("logits", logits, (None, None))
    check_dtype("logits", logits, torch.float32)
    check_dense("logits", logits)
    if logits.shape[1] == 0:
        raise ShapeError("logits has no columns and should have one for each token of the vocabulary")
    for name, tensor in (floats | whole).items():
        check_shape(name, tensor, (len(logits),))
        check_dtype(name, tensor, torch.float32 if name in floats else torch.int64)
        check_dense(name, tensor)
    check_same_device(logits=logits, **floats, **whole)


def _padded(chunks: int) -> int:
    return max(2, int(triton.next_power_of_2(chunks)))


def _constants(vocabulary: int) -> dict[str, object]:
    chunks = _padded(triton.cdiv(vocabulary, CHUNK))
    return {"CHUNK": CHUNK, "CHUNKS": chunks, "BINS": BINS, "CANDIDATES": CANDIDATES}


def _scratch(rows: int, chunks: int, device: torch.device) -> dict[str, Tensor]:
    """What the kernels hand to one another."""

    def empty(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    return {
        "peaks": empty(rows, chunks, dtype=torch.float32),
        "masses": empty(rows, chunks, dtype=torch.int64),
        "counts": empty(rows, chunks, BINS, dtype=torch.int32),
        "offsets": empty(rows, chunks + 1, dtype=torch.int32),
        "bins_taken": empty(rows, dtype=torch.int32),
        "candidate_logits": empty(rows, CANDIDATES, dtype=torch.float32),
        "candidate_ids": empty(rows, CANDIDATES, dtype=torch.int32),
    }


_TYPES = {
    "logits": "*fp32",
    "peaks": "*fp32",
    "masses": "*i64",
    "counts": "*i32",
    "offsets": "*i32",
    "bins_taken": "*i32",
    "candidate_logits": "*fp32",
    "candidate_ids": "*i32",
    "tokens": "*i64",
    "temperature": "*fp32",
    "top_k": "*i64",
    "top_p": "*fp32",
    "min_p": "*fp32",
    "seed": "*i64",
    "output_index": "*i64",
    "choice": "*i64",
    "vocabulary": "i32",
    "stride": "i32",
    "chunks": "i32",
}


def compile_cases() -> list[CompileCase]:
    """Each kernel for Llama 3's vocabulary of 128,256 tokens, and the plan for Gemma 3's of 262,208."""
    kernels = (peaks_kernel, tally_kernel, plan_kernel, collect_kernel, choose_kernel)
    return [*(_case(kernel, 128_256) for kernel in kernels), _case(plan_kernel, 262_208)]


def _case(kernel: Any, vocabulary: int) -> CompileCase:
    constants = {name: value for name, value in _constants(vocabulary).items() if name in kernel.arg_names}
    types = {name: kind for name, kind in _TYPES.items() if name in kernel.arg_names}
    label = f"sampling {kernel.__name__.removesuffix('_kernel')}[{vocabulary}]"
    return CompileCase(kernel, types, constants, WARPS, 1, label, ("vocabulary", "stride"), fp_fusion=False)
