"""LoRA's two products over segments of tokens (SGMV). Shapes are those of `penstock_kernels.lora`.

The grid depends on shapes alone, so a captured graph serves every division into segments: there are at most
`tokens / BLOCK_TOKENS + segments` tiles of tokens, and a program finds its own by counting the tiles of the segments
before it. Each sum runs in the order of its inner dimension, whatever else is in the batch.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from penstock_kernels.checks import ShapeError, check_dense, check_dtype, check_same_device, check_shape
from penstock_kernels.gpu.cases import CompileCase, pointer

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
LARGEST_RANK = 128
MOST_SEGMENTS = 4096
BLOCK_IN = 128  # a tile of `down` of rank 16 is 4 KB in 16 bits: three stages hide the latency of memory
BLOCK_OUT = 128
STAGES = 3
WARPS = 4


@triton.jit
def find_tile(starts, segments, tile, BLOCK_TOKENS: tl.constexpr, SEGMENTS: tl.constexpr):
    """(segment, first token, end of the segment) of a tile; past the last tile, `segments` and nothing."""
    at = tl.arange(0, SEGMENTS)
    real = at < segments
    lengths = tl.load(starts + at + 1, real, 0) - tl.load(starts + at, real, 0)
    tiles = (lengths + BLOCK_TOKENS - 1) // BLOCK_TOKENS
    segment = tl.sum((real & (tl.cumsum(tiles) <= tile)).to(tl.int32))
    before = tl.sum(tl.where(at < segment, tiles, 0))
    found = segment < segments
    first = tl.load(starts + segment, found, 0) + (tile - before) * BLOCK_TOKENS
    return segment, first, tl.load(starts + segment + 1, found, 0)


@triton.jit
def lora_shrink_kernel(
    x,
    down,
    out,
    starts,
    adapters,
    segments,
    width,
    rank,
    x_stride,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    SEGMENTS: tl.constexpr,
):
    segment, first, end = find_tile(starts, segments, tl.program_id(0), BLOCK_TOKENS, SEGMENTS)
    if segment < segments:
        adapter = tl.load(adapters + segment).to(tl.int64)
        token = first + tl.arange(0, BLOCK_TOKENS)[:, None]
        direction = tl.program_id(1) * BLOCK_RANK + tl.arange(0, BLOCK_RANK)[None, :]
        dim = tl.arange(0, BLOCK_IN)
        sums = tl.zeros((BLOCK_TOKENS, BLOCK_RANK), tl.float32)
        rows = x + token.to(tl.int64) * x_stride
        columns = down + (adapter * rank + direction) * width
        reach = tl.where(adapter < 0, 0, width)  # without an adapter nothing is added
        for start in range(0, reach, BLOCK_IN):
            inner = start + dim
            left = tl.load(rows + inner[None, :], (token < end) & (inner < width)[None, :], 0.0)
            right = tl.load(columns + inner[:, None], (direction < rank) & (inner < width)[:, None], 0.0)
            sums = tl.dot(left, right, sums, input_precision="ieee")
        at = out + token.to(tl.int64) * rank + direction
        tl.store(at, sums.to(out.dtype.element_ty), (token < end) & (direction < rank))


@triton.jit
def lora_expand_kernel(
    shrunk,
    up,
    out,
    starts,
    adapters,
    segments,
    width,
    rank,
    out_stride,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    SEGMENTS: tl.constexpr,
):
    segment, first, end = find_tile(starts, segments, tl.program_id(0), BLOCK_TOKENS, SEGMENTS)
    if segment < segments:
        adapter = tl.load(adapters + segment).to(tl.int64)
        if adapter >= 0:
            token = first + tl.arange(0, BLOCK_TOKENS)[:, None]
            column = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)[None, :]
            at = out + token.to(tl.int64) * out_stride + column
            mask = (token < end) & (column < width)
            sums = tl.load(at, mask, 0.0).to(tl.float32)
            rows = shrunk + token.to(tl.int64) * rank
            columns = up + adapter * rank * width + column
            for start in range(0, rank, BLOCK_RANK):
                direction = start + tl.arange(0, BLOCK_RANK)
                left = tl.load(rows + direction[None, :], (token < end) & (direction < rank)[None, :], 0.0)
                within = (direction < rank)[:, None] & (column < width)
                right = tl.load(columns + direction[:, None] * width, within, 0.0)
                sums = tl.dot(left, right, sums, input_precision="ieee")
            tl.store(at, sums.to(out.dtype.element_ty), mask)


def lora_shrink(x: Tensor, down: Tensor, starts: Tensor, adapters: Tensor) -> Tensor:
    """As `penstock_kernels.lora.lora_shrink`; what the segments say is not checked against the shapes."""
    check_shape("x", x, (None, None))
    check_shape("down", down, (None, None, x.shape[1]))
    _check_common("x", x, "down", down, starts, adapters)
    tokens, width = x.shape
    rank = down.shape[1]
    out = torch.empty(tokens, rank, dtype=x.dtype, device=x.device)
    if tokens and len(adapters):
        constants = _shrink_constants(tokens, len(adapters), rank)
        tiles = _most_tiles(tokens, len(adapters), constants["BLOCK_TOKENS"])
        grid = (tiles, triton.cdiv(rank, constants["BLOCK_RANK"]))
        lora_shrink_kernel[grid](
            x,
            down,
            out,
            starts,
            adapters,
            len(adapters),
            width,
            rank,
            x.stride(0),
            **constants,
            num_warps=WARPS,
            num_stages=STAGES,
        )
    return out


def lora_expand(shrunk: Tensor, up: Tensor, starts: Tensor, adapters: Tensor, out: Tensor) -> None:
    """As `penstock_kernels.lora.lora_expand`; what the segments say is not checked against the shapes."""
    check_shape("shrunk", shrunk, (None, None))
    check_shape("up", up, (None, shrunk.shape[1], None))
    check_dense("shrunk", shrunk, 2)
    _check_common("shrunk", shrunk, "up", up, starts, adapters)
    tokens, rank = shrunk.shape
    width = up.shape[2]
    check_shape("out", out, (tokens, width))
    check_dtype("out", out, shrunk.dtype)
    check_dense("out", out)
    check_same_device(out=out, shrunk=shrunk)
    if tokens and len(adapters):
        constants = _expand_constants(tokens, len(adapters), rank, shrunk.dtype)
        tiles = _most_tiles(tokens, len(adapters), constants["BLOCK_TOKENS"])
        lora_expand_kernel[(tiles, triton.cdiv(width, BLOCK_OUT))](
            shrunk,
            up,
            out,
            starts,
            adapters,
            len(adapters),
            width,
            rank,
            out.stride(0),
            **constants,
            num_warps=WARPS,
            num_stages=1,
        )


def _check_common(left: str, x: Tensor, right: str, stacked: Tensor, starts: Tensor, adapters: Tensor) -> None:
    check_dtype(left, x, *FLOATS)
    check_dtype(right, stacked, x.dtype)
    check_dense(left, x)
    check_dense(right, stacked, 3)
    check_shape("adapters", adapters, (None,))
    check_shape("starts", starts, (len(adapters) + 1,))
    for name, tensor in (("starts", starts), ("adapters", adapters)):
        check_dtype(name, tensor, torch.int32)
        check_dense(name, tensor)
    check_same_device(**{left: x, right: stacked, "starts": starts, "adapters": adapters})
    if stacked.shape[1] > LARGEST_RANK:
        raise ShapeError(f"{right} is of rank {stacked.shape[1]} and should be of rank {LARGEST_RANK} at most")
    if len(adapters) > MOST_SEGMENTS:
        raise ShapeError(f"adapters has {len(adapters)} entries and should have {MOST_SEGMENTS} at most")


def _most_tiles(tokens: int, segments: int, block: int) -> int:
    """Tiles that any division of `tokens` into `segments` can need: each segment may add one that is not full."""
    return min(tokens, tokens // block + segments)


def _constants(tokens: int, segments: int) -> dict[str, int]:
    """Wide tiles of tokens where the mean segment fills them; 16 is the least that the tensor cores take."""
    return {
        "BLOCK_TOKENS": 64 if tokens >= 64 * segments else 16,
        "SEGMENTS": triton.next_power_of_2(max(segments, 2)),
    }


def _shrink_constants(tokens: int, segments: int, rank: int) -> dict[str, int]:
    """Narrow tiles of tokens share the rank among programs: there are few of them, and each reads long rows."""
    common = _constants(tokens, segments)
    return common | {"BLOCK_RANK": 16 if common["BLOCK_TOKENS"] == 16 else _rank_block(rank), "BLOCK_IN": BLOCK_IN}


def _expand_constants(tokens: int, segments: int, rank: int, dtype: torch.dtype) -> dict[str, int]:
    """The whole rank at once, but for float32: without tensor cores a wide product spills its operands."""
    block = 16 if dtype == torch.float32 else _rank_block(rank)
    return _constants(tokens, segments) | {"BLOCK_RANK": block, "BLOCK_OUT": BLOCK_OUT}


def _rank_block(rank: int) -> int:
    return max(16, int(triton.next_power_of_2(rank)))


def compile_cases() -> list[CompileCase]:
    """Decoding 64 segments and prefill of 4, ranks 16 and 64, in each dtype where it decides."""
    shapes = [(torch.bfloat16, 64, 64, 16), (torch.float16, 64, 64, 16), (torch.bfloat16, 8192, 4, 64)]
    shapes += [(torch.float32, 64, 64, 64)]
    return [case(*shape) for case in (_shrink_case, _expand_case) for shape in shapes]


def _shrink_case(dtype: torch.dtype, tokens: int, segments: int, rank: int) -> CompileCase:
    kind = pointer(dtype)
    types = dict.fromkeys(("x", "down", "out"), kind) | dict.fromkeys(("starts", "adapters"), "*i32")
    types |= dict.fromkeys(("segments", "width", "rank", "x_stride"), "i32")
    constants = _shrink_constants(tokens, segments, rank)
    label = _label("lora_shrink", dtype, constants, rank)
    return CompileCase(lora_shrink_kernel, types, dict(constants), WARPS, STAGES, label, ("width", "rank", "x_stride"))


def _expand_case(dtype: torch.dtype, tokens: int, segments: int, rank: int) -> CompileCase:
    kind = pointer(dtype)
    types = dict.fromkeys(("shrunk", "up", "out"), kind) | dict.fromkeys(("starts", "adapters"), "*i32")
    types |= dict.fromkeys(("segments", "width", "rank", "out_stride"), "i32")
    constants = _expand_constants(tokens, segments, rank, dtype)
    label = _label("lora_expand", dtype, constants, rank)
    return CompileCase(lora_expand_kernel, types, dict(constants), WARPS, 1, label, ("width", "rank", "out_stride"))


def _label(op: str, dtype: torch.dtype, constants: dict[str, int], rank: int) -> str:
    return f"{op}[{constants['BLOCK_TOKENS']} tokens, rank {rank}, {str(dtype).removeprefix('torch.')}]"
