"""Self-attention with rotary positions over the paged pool, in the variants that the served families need."""

import torch
from penstock_kernels import rotary, store_kv
from torch import Tensor, nn

from penstock_engine.forward_batch import ForwardBatch
from penstock_engine.layers.attention import Scores, paged_attention
from penstock_engine.layers.linear import Linear
from penstock_engine.layers.norm import RMSNorm
from penstock_engine.model_config import ModelConfig

Angles = tuple[Tensor, Tensor]  # cosines and sines of each token


class SelfAttention(nn.Module):
    """Grouped-query attention; Q, K and V in one product.

    `head_norm` normalises each head of Q and K before the rotation. `fused_checkpoint` is a folder that holds Q, K
    and V as one tensor. Window, soft cap and rotary table are the layer's by `config`.
    """

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        *,
        qkv_bias: bool = False,
        out_bias: bool = False,
        head_norm: type[RMSNorm] | None = None,
        fused_checkpoint: bool = False,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.layer, self.heads, self.kv_heads, self.head_dim = layer, config.heads, config.kv_heads, config.head_dim
        window = config.window(layer)
        self.scores = Scores((config.query_scalar or config.head_dim) ** -0.5, window, config.attention_softcap)
        self.rope = 1 if window is not None and config.local_rope is not None else 0  # index into the angles
        self.turned = config.rope.dims(config.head_dim)
        q_rows, kv_rows = config.heads * config.head_dim, config.kv_heads * config.head_dim
        parts = None if fused_checkpoint else {"q_proj": q_rows, "k_proj": kv_rows, "v_proj": kv_rows}
        hidden = config.hidden_size
        self.qkv_proj = Linear(hidden, q_rows + 2 * kv_rows, bias=qkv_bias, dtype=dtype, device=device, parts=parts)
        self.o_proj = Linear(q_rows, hidden, bias=out_bias, dtype=dtype, device=device)
        self.q_norm = head_norm(self.head_dim, config.norm_eps, dtype=dtype, device=device) if head_norm else None
        self.k_norm = head_norm(self.head_dim, config.norm_eps, dtype=dtype, device=device) if head_norm else None

    def forward(self, x: Tensor, angles: tuple[Angles, ...], batch: ForwardBatch) -> Tensor:
        qkv = self.qkv_proj(x).view(len(x), -1, self.head_dim)  # [tokens, heads + 2 * kv_heads, head_dim]
        if self.q_norm is not None and self.k_norm is not None:
            q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
            qkv = torch.cat((self.q_norm(q), self.k_norm(k), v), dim=1)
        rotary(qkv[:, : self.heads + self.kv_heads, : self.turned], *angles[self.rope])
        tokens = len(batch.slots)  # the rows after these are padding
        store_kv(batch.pool.slots(self.layer), batch.slots, qkv[:tokens, self.heads :])
        q = qkv[:, : self.heads]
        attended = paged_attention(
            q, batch.pool, self.layer, batch.attention, kv_heads=self.kv_heads, scores=self.scores
        )
        out: Tensor = self.o_proj(attended)
        return out
