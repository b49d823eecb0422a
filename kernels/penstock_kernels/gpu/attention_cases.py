"""Cases of the attention kernels to compile ahead of time."""

from typing import Any

from penstock_kernels.gpu.attention_tiles import Tiles
from penstock_kernels.gpu.attention_variants import Variant
from penstock_kernels.gpu.cases import CompileCase, pointer

STRIDES = ("q_token_stride", "q_head_stride", "page_stride", "scale_page_stride", "out_stride")


def attention_case(
    kernel: Any, name: str, variant: Variant, tiles: Tiles, types: dict[str, str], **constants: object
) -> CompileCase:
    """`types` are those that the kernel has besides what `variant` decides."""
    own: dict[str, object] = {**variant.constants(), "BLOCK_M": tiles.block_m, "BLOCK_N": tiles.block_n, **constants}
    signature = {
        "q": pointer(variant.dtype),
        "pool": pointer(variant.pool or variant.dtype),
        "scales": "*fp16",
        "page_table": "*i32",
        "query_starts": "*i32",
        "context_lens": "*i32",
        "out": pointer(variant.dtype),
        "scale": "fp32",
        "softcap": "fp32",
        **dict.fromkeys(("runs", "window", "table_stride", *STRIDES), "i32"),
        **types,
    }
    if variant.pool is None:
        own["scales"] = None
    label = f"{name}{variant.label()} {tiles.label}"
    return CompileCase(kernel, signature, own, tiles.num_warps, tiles.num_stages, label, STRIDES)
