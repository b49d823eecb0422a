"""Log probabilities of chosen tokens, with every logit read once. Shapes: `penstock_kernels.logprobs`.

    parts     program per (row, chunk)   the chunk's largest logit, and the sum of exponentials relative to it
    weigh     program per row            the row's sum, the token's share of it, and whether the sum is a number

A logit that is infinite or not a number makes its chunk's sum not a number, whichever way the maximum takes it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from penstock_kernels.checks import ShapeError, check_dense, check_dtype, check_same_device, check_shape
from penstock_kernels.gpu.cases import CompileCase

CHUNK = 4096  # 16 logits to a thread of 8 warps
WARPS = 8


@triton.jit
def logprob_parts_kernel(logits, peaks, sums, vocabulary, stride, CHUNK: tl.constexpr, CHUNKS: tl.constexpr):
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    token = chunk * CHUNK + tl.arange(0, CHUNK)
    values = tl.load(logits + row * stride + token, token < vocabulary, float("-inf"))
    peak = tl.max(values)
    base = tl.where(peak > float("-inf"), peak, 0.0)  # of a chunk that may not be chosen from, every power is 0
    tl.store(peaks + row * CHUNKS + chunk, base)
    tl.store(sums + row * CHUNKS + chunk, tl.sum(tl.exp(values - base)))


@triton.jit
def logprob_weigh_kernel(logits, tokens, peaks, sums, logprobs, finite, chunks, stride, CHUNKS: tl.constexpr):
    row, at = tl.program_id(0).to(tl.int64), tl.arange(0, CHUNKS)
    part = tl.load(sums + row * CHUNKS + at, at < chunks, 0.0)
    base = tl.load(peaks + row * CHUNKS + at, at < chunks, float("-inf"))
    peak = tl.max(tl.where(part > 0, base, float("-inf")))
    peak = tl.where(peak > float("-inf"), peak, 0.0)
    total = tl.sum(tl.where(part == 0, 0.0, part * tl.exp(base - peak)))
    own = tl.load(logits + row * stride + tl.load(tokens + row))
    tl.store(logprobs + row, own - peak - tl.log(total))
    tl.store(finite + row, (total > 0) & (total < float("inf")))


def chosen_logprobs(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """As `penstock_kernels.logprobs.chosen_logprobs`; tokens are not checked against the vocabulary."""
    _check(logits, tokens)
    rows, vocabulary = logits.shape
    logprobs = torch.empty(rows, dtype=torch.float32, device=logits.device)
    finite = torch.empty(rows, dtype=torch.bool, device=logits.device)
    if rows:
        chunks = triton.cdiv(vocabulary, CHUNK)
        padded, stride = triton.next_power_of_2(chunks), logits.stride(0)
        peaks, sums = torch.empty(2, rows, padded, dtype=torch.float32, device=logits.device)
        logprob_parts_kernel[(rows, chunks)](
            logits, peaks, sums, vocabulary, stride, CHUNK=CHUNK, CHUNKS=padded, num_warps=WARPS
        )
        logprob_weigh_kernel[(rows,)](
            logits, tokens, peaks, sums, logprobs, finite, chunks, stride, CHUNKS=padded, num_warps=1
        )
    return logprobs, finite


def _check(logits: Tensor, tokens: Tensor) -> None:
    check_shape("logits", logits, (None, None))
    check_dtype("logits", logits, torch.float32)
    check_dense("logits", logits)
    if logits.shape[1] == 0:
        raise ShapeError("logits has no columns and should have one for each token of the vocabulary")
    check_shape("tokens", tokens, (len(logits),))
    check_dtype("tokens", tokens, torch.int64)
    check_dense("tokens", tokens)
    check_same_device(logits=logits, tokens=tokens)


def compile_cases() -> list[CompileCase]:
    """Llama 3's vocabulary of 128,256 tokens."""
    padded = triton.next_power_of_2(triton.cdiv(128_256, CHUNK))
    floats = dict.fromkeys(("logits", "peaks", "sums"), "*fp32")
    parts = {**floats, "vocabulary": "i32", "stride": "i32"}
    weigh = {**floats, "tokens": "*i64", "logprobs": "*fp32", "finite": "*i1", "chunks": "i32", "stride": "i32"}
    width: dict[str, object] = {"CHUNKS": padded}
    return [
        CompileCase(
            logprob_parts_kernel,
            parts,
            {"CHUNK": CHUNK, **width},
            WARPS,
            1,
            "logprob parts[128256]",
            ("vocabulary", "stride"),
        ),
        CompileCase(logprob_weigh_kernel, weigh, width, 1, 1, "logprob weigh[128256]", ("stride",)),
    ]
