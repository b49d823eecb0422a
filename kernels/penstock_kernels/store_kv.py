"""Writing K and V into the paged pool."""

from torch import Tensor


def store_kv(pool: Tensor, slots: Tensor, kv: Tensor) -> None:
    """Write `kv` [tokens, 2 * kv_heads, head_dim] (K heads, then V heads) to `slots` [tokens] of one layer's pool.

    `pool` is [slots, 2 * kv_heads, head_dim]; a slot is `page * page_size + offset`. The slots of one call differ
    from one another, so the order of the writes does not matter.
    """
    pool.index_copy_(0, slots, kv)
