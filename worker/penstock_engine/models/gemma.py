"""Gemma 1, 2 and 3 (text). Sources: Gemma Team, "Gemma", 2024; "Gemma 2", 2024; "Gemma 3", 2025."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penstock_engine.forward_batch import ForwardBatch
from penstock_engine.layers.feed_forward import FeedForward
from penstock_engine.layers.linear import Embedding
from penstock_engine.layers.norm import RMSNorm
from penstock_engine.layers.self_attention import Angles, SelfAttention
from penstock_engine.model_config import ModelConfig
from penstock_engine.models.decoder import DecoderLayer, DecoderLM


class GemmaNorm(RMSNorm):
    """Normalises, then multiplies by 1 + weight, in float32: rounded to bfloat16 first, 1 + weight would lose bits."""

    def factors(self) -> Tensor:
        return 1.0 + self.weight.detach().float()

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.factors(), self.eps).to(x.dtype)

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        residual.add_(x)
        return self(residual), residual


class GemmaEmbedding(Embedding):
    """Scaled by the root of its width, rounded to the model's type as the model was trained."""

    def forward(self, ids: Tensor) -> Tensor:
        width = self.weight.shape[1]
        return super().forward(ids) * torch.tensor(width**0.5, dtype=self.weight.dtype, device=self.weight.device)


class PostNormLayer(DecoderLayer):
    """Norms after attention and feed-forward too, before their answers reach the residual."""

    def __init__(
        self,
        config: ModelConfig,
        attention: nn.Module,
        feed_forward: nn.Module,
        *,
        norm: type[RMSNorm],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__(config, attention, feed_forward, norm=norm, dtype=dtype, device=device)
        self.pre_feedforward_layernorm = norm(config.hidden_size, config.norm_eps, dtype=dtype, device=device)
        self.post_feedforward_layernorm = norm(config.hidden_size, config.norm_eps, dtype=dtype, device=device)

    def forward(
        self, x: Tensor, residual: Tensor, angles: tuple[Angles, ...], batch: ForwardBatch
    ) -> tuple[Tensor, Tensor]:
        x, residual = self.input_layernorm.add(x, residual)
        x = self.post_attention_layernorm(self.self_attn(x, angles, batch))
        x, residual = self.pre_feedforward_layernorm.add(x, residual)
        return self.post_feedforward_layernorm(self.mlp(x)), residual


def gemma(config: ModelConfig, positions: int, dtype: torch.dtype, device: torch.device) -> DecoderLM:
    """Gemma 1."""
    return _build(config, positions, DecoderLayer, None, dtype, device)


def gemma2(config: ModelConfig, positions: int, dtype: torch.dtype, device: torch.device) -> DecoderLM:
    """Gemma 2: soft caps and a window in every other layer come with `config`."""
    return _build(config, positions, PostNormLayer, None, dtype, device)


def gemma3(config: ModelConfig, positions: int, dtype: torch.dtype, device: torch.device) -> DecoderLM:
    """Gemma 3's text model: norms on the heads of Q and K, and a rotary base of their own for layers with a window."""
    return _build(config, positions, PostNormLayer, GemmaNorm, dtype, device)


def _build(
    config: ModelConfig,
    positions: int,
    layer_class: type[DecoderLayer],
    head_norm: type[RMSNorm] | None,
    dtype: torch.dtype,
    device: torch.device,
) -> DecoderLM:
    def block(layer: int) -> nn.Module:
        bias = config.attention_bias
        attention = SelfAttention(
            config, layer, qkv_bias=bias, out_bias=bias, head_norm=head_norm, dtype=dtype, device=device
        )
        feed_forward = FeedForward(config, config.intermediate_size, dtype=dtype, device=device)
        return layer_class(config, attention, feed_forward, norm=GemmaNorm, dtype=dtype, device=device)

    return DecoderLM(config, positions, block, embedding=GemmaEmbedding, norm=GemmaNorm, dtype=dtype, device=device)
