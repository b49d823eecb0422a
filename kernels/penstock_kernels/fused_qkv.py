"""What happens to Q, K and V between their product and attention, in one pass over memory."""

from typing import NamedTuple

from torch import Tensor

from penstock_kernels.rms_norm import rms_norm
from penstock_kernels.rotary import rotary_at
from penstock_kernels.store_kv import store_kv


class HeadNorms(NamedTuple):
    """RMS norms over each head of Q and of K, weights [head_dim]; see `rms_norm` for `plus_one`."""

    q_weight: Tensor
    k_weight: Tensor
    eps: float
    plus_one: bool = False


def norm_rotary_store(
    qkv: Tensor,
    positions: Tensor,
    cos: Tensor,
    sin: Tensor,
    pool: Tensor,
    slots: Tensor,
    *,
    heads: int,
    norms: HeadNorms | None = None,
    scales: Tensor | None = None,
) -> None:
    """Normalise the heads of Q and K, rotate them, and write K and V into the pool; Q is replaced in place.

    `qkv` is [tokens, heads + 2 * kv_heads, head_dim]: Q, K, V heads. `cos` and `sin` are [positions, 1, rotated / 2]
    and `positions` [tokens], as in `rotary_at`; dimensions of a head after the rotated ones stay. `pool` is
    [slots, 2 * kv_heads, head_dim] in the type of `qkv`, or of 8 bits with `scales`, as in `store_kv`. `slots` may be
    shorter than `qkv`: tokens after its end are padding and not stored. What is left in the K heads of `qkv` is not
    defined: read them from the pool.
    """
    kv_heads, rotated = (qkv.shape[1] - heads) // 2, 2 * cos.shape[-1]
    q, k = qkv[:, :heads], qkv[:, heads : heads + kv_heads]
    if norms is not None:
        q.copy_(rms_norm(q, norms.q_weight, norms.eps, plus_one=norms.plus_one))
        k.copy_(rms_norm(k, norms.k_weight, norms.eps, plus_one=norms.plus_one))
    rotary_at(qkv[:, : heads + kv_heads, :rotated], positions, cos, sin)
    store_kv(pool, slots, qkv[: len(slots), heads:], scales)
