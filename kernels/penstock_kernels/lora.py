"""Low-rank adapters, many in one batch: each run of tokens goes through its own adapter's two thin matrices.

    x           [tokens, in]
    down        [adapters, rank, in]           A of "x A^T B": what checkpoints call lora_A
    up          [adapters, rank, out]          lora_B transposed, times alpha / rank: a loader does both once
    starts      [segments + 1] int32           segment s is tokens starts[s] to starts[s + 1]; starts[0] is 0
    adapters    [segments] int32               the segment's adapter, or -1 for none

Adapters of smaller rank are filled up with zeros. Tokens from `starts[segments]` on belong to no segment: padding.
Sources: Hu et al., "LoRA", 2021; Chen et al., "Punica: Multi-Tenant LoRA Serving", 2023 (segments of tokens).
"""

from torch import Tensor

NO_ADAPTER = -1


def lora_shrink(x: Tensor, down: Tensor, starts: Tensor, adapters: Tensor) -> Tensor:
    """`x @ down[adapter].T` of each token, [tokens, rank], summed in float32 and rounded to the type of `x`.

    Zero where a segment has no adapter; not defined for padding.
    """
    out = x.new_zeros(len(x), down.shape[1])
    for adapter, rows in _segments(starts, adapters):
        out[rows] = (x[rows].float() @ down[adapter].float().T).to(x.dtype)
    return out


def lora_expand(shrunk: Tensor, up: Tensor, starts: Tensor, adapters: Tensor, out: Tensor) -> None:
    """Add `shrunk @ up[adapter]` into `out` [tokens, width], summed in float32 and rounded once.

    `out` may be a slice of columns of a wider product. Rows without an adapter, and padding, stay as they are.
    """
    for adapter, rows in _segments(starts, adapters):
        out[rows] = (out[rows].float() + shrunk[rows].float() @ up[adapter].float()).to(out.dtype)


def _segments(starts: Tensor, adapters: Tensor) -> list[tuple[int, slice]]:
    """(adapter, its tokens) of each segment that has one."""
    bounds: list[int] = starts.tolist()
    return [
        (adapter, slice(bounds[at], bounds[at + 1]))
        for at, adapter in enumerate(adapters.tolist())
        if adapter != NO_ADAPTER
    ]
