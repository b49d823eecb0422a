"""The operations that the engine's forward pass is made of, each with its shapes and its torch reference.

`store_kv` writes K and V into the paged pool, `rms_norm` and `rms_norm_residual` normalise, `rotary` rotates
queries and keys by position, `silu_mul` is the gate of the feed-forward block. The torch forms here run on
every device that torch runs on; they are what faster kernels of the same signature are tested against.
"""

from penstock_kernels.activations import silu_mul
from penstock_kernels.rms_norm import rms_norm, rms_norm_residual
from penstock_kernels.rotary import rotary
from penstock_kernels.store_kv import store_kv

__all__ = ["rms_norm", "rms_norm_residual", "rotary", "silu_mul", "store_kv"]
