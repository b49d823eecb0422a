"""The decoder that Llama and its relatives share: pre-norm attention and feed-forward blocks on a residual stream."""

from collections.abc import Callable, Iterator

import torch
from penstock_kernels import rotary, silu_mul, store_kv
from torch import Tensor, nn

from penstock_engine.forward_batch import ForwardBatch
from penstock_engine.layers.attention import paged_attention
from penstock_engine.layers.linear import Embedding, Linear
from penstock_engine.layers.norm import RMSNorm
from penstock_engine.layers.rotary import RotaryEmbedding
from penstock_engine.model_config import ModelConfig

Angles = tuple[Tensor, Tensor]


class SelfAttention(nn.Module):
    """Grouped-query attention with rotary positions; Q, K and V in one product."""

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        *,
        qkv_bias: bool,
        out_bias: bool,
        qk_norm: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.layer, self.heads, self.kv_heads, self.head_dim = layer, config.heads, config.kv_heads, config.head_dim
        self.scale = config.head_dim**-0.5
        q_rows, kv_rows = config.heads * config.head_dim, config.kv_heads * config.head_dim
        parts = {"q_proj": q_rows, "k_proj": kv_rows, "v_proj": kv_rows}
        hidden = config.hidden_size
        self.qkv_proj = Linear(hidden, q_rows + 2 * kv_rows, bias=qkv_bias, dtype=dtype, device=device, parts=parts)
        self.o_proj = Linear(q_rows, hidden, bias=out_bias, dtype=dtype, device=device)
        self.q_norm = RMSNorm(self.head_dim, config.norm_eps, dtype=dtype, device=device) if qk_norm else None
        self.k_norm = RMSNorm(self.head_dim, config.norm_eps, dtype=dtype, device=device) if qk_norm else None

    def forward(self, x: Tensor, angles: Angles, batch: ForwardBatch) -> Tensor:
        qkv = self.qkv_proj(x).view(len(x), -1, self.head_dim)  # [tokens, heads + 2 * kv_heads, head_dim]
        if self.q_norm is not None and self.k_norm is not None:
            q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
            qkv = torch.cat((self.q_norm(q), self.k_norm(k), v), dim=1)
        rotary(qkv[:, : self.heads + self.kv_heads], *angles)
        tokens = len(batch.slots)  # the rows after these are padding
        store_kv(batch.pool.slots(self.layer), batch.slots, qkv[:tokens, self.heads :])
        q = qkv[:, : self.heads]
        attended = paged_attention(q, batch.pool, self.layer, batch.attention, kv_heads=self.kv_heads, scale=self.scale)
        out: Tensor = self.o_proj(attended)
        return out


class FeedForward(nn.Module):
    """SwiGLU; gate and up in one product."""

    def __init__(self, config: ModelConfig, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        parts = {"gate_proj": inner, "up_proj": inner}
        self.gate_up_proj = Linear(hidden, 2 * inner, bias=bias, dtype=dtype, device=device, parts=parts)
        self.down_proj = Linear(inner, hidden, bias=bias, dtype=dtype, device=device)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(silu_mul(self.gate_up_proj(x)))
        return out


class DecoderLayer(nn.Module):
    """One block: attention, then feed-forward, each behind a norm that first adds to the residual."""

    def __init__(self, config: ModelConfig, attention: nn.Module, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps, dtype=dtype, device=device)
        self.self_attn = attention
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps, dtype=dtype, device=device)
        self.mlp = FeedForward(config, dtype=dtype, device=device)

    def forward(self, x: Tensor, residual: Tensor, angles: Angles, batch: ForwardBatch) -> tuple[Tensor, Tensor]:
        x, residual = self.input_layernorm.add(x, residual)
        x = self.self_attn(x, angles, batch)
        x, residual = self.post_attention_layernorm.add(x, residual)
        return self.mlp(x), residual


class Decoder(nn.Module):
    """Embeddings, blocks and the last norm: token ids to hidden states [tokens, hidden]."""

    def __init__(
        self, config: ModelConfig, attention: Callable[[int], nn.Module], *, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, dtype=dtype, device=device)
        blocks = (DecoderLayer(config, attention(at), dtype=dtype, device=device) for at in range(config.layers))
        self.layers = nn.ModuleList(blocks)
        self.norm = RMSNorm(config.hidden_size, config.norm_eps, dtype=dtype, device=device)

    def forward(self, angles: Angles, batch: ForwardBatch) -> Tensor:
        x = self.embed_tokens(batch.input_ids)
        residual = torch.zeros_like(x)
        for layer in self.layers:
            x, residual = layer(x, residual, angles, batch)
        if batch.sample_at is not None:
            x, residual = x.index_select(0, batch.sample_at), residual.index_select(0, batch.sample_at)
        return self.norm.add(x, residual)[0]


class CausalLM(nn.Module):
    """Token ids to logits. `attention(layer)` builds each layer's attention; names are the checkpoint's."""

    def __init__(
        self,
        config: ModelConfig,
        positions: int,
        attention: Callable[[int], nn.Module],
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config, attention, dtype=dtype, device=device)
        self.rotary = RotaryEmbedding(config, positions, dtype=dtype, device=device)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False, dtype=dtype, device=device)
        if config.tied_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, batch: ForwardBatch) -> Tensor:
        """Logits in float32 of the tokens to be sampled after, [padded sampled, vocabulary]."""
        logits: Tensor = self.lm_head(self.model(self.rotary(batch.positions), batch))
        return logits.float()

    def checkpoint_views(self) -> Iterator[tuple[str, Tensor]]:
        """(name in the checkpoint, the memory to fill) for every tensor that the checkpoint must hold."""
        for name, module in self.named_modules():
            tied = module is self.lm_head and self.config.tied_embeddings
            if isinstance(module, Linear) and not tied:
                yield from module.checkpoint_views(name)
            elif isinstance(module, RMSNorm | Embedding):
                yield f"{name}.weight", module.weight
