"""Writing K and V into the paged pool."""

import torch
from torch import Tensor

from penstock_kernels.checks import check_dense, check_dtype, check_same_device, check_shape
from penstock_kernels.kv import LARGEST, SCALE_DTYPES, quantize_heads


def store_kv(pool: Tensor, slots: Tensor, kv: Tensor, scales: Tensor | None = None) -> None:
    """Write `kv` [tokens, 2 * kv_heads, head_dim] (K heads, then V heads) to `slots` [tokens] of one layer's pool.

    `pool` is [slots, 2 * kv_heads, head_dim]; a slot is `page * page_size + offset`. The slots of one call differ
    from one another, so the order of the writes does not matter; only the null page, whose content nobody reads, may
    be named by many. A pool of int8 or float8_e4m3fn comes with `scales` [slots, 2 * kv_heads] in float16 or float32
    and is quantized as `penstock_kernels.kv` says.
    """
    if scales is None:
        pool.index_copy_(0, slots, kv)
        return
    quantized, each = quantize_heads(kv, pool.dtype, scales.dtype)
    pool.view(torch.int8).index_copy_(0, slots, quantized.view(torch.int8))  # torch indexes no 8-bit floats
    scales.index_copy_(0, slots, each)


def check_store_kv(pool: Tensor, slots: Tensor, kv: Tensor, scales: Tensor | None) -> None:
    """What kernels rely on; raises `ArgumentError`."""
    tokens, heads, head_dim = kv.shape
    check_shape("slots", slots, (tokens,))
    check_shape("pool", pool, (None, heads, head_dim))
    check_dtype("slots", slots, torch.int32, torch.int64)
    check_dense("slots", slots)
    check_dense("pool", pool, 2)
    check_dense("kv", kv, 2)
    if scales is None:
        check_dtype("pool", pool, kv.dtype)
    else:
        check_dtype("pool", pool, *LARGEST)
        check_dtype("scales", scales, *SCALE_DTYPES)
        check_shape("scales", scales, (pool.shape[0], heads))
        check_dense("scales", scales, 2)
    check_same_device(kv=kv, pool=pool, slots=slots, scales=scales)
