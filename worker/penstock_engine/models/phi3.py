"""Phi-3 and Phi-4 (mini). Source: Abdin et al., "Phi-3 Technical Report", 2024."""

import torch
from torch import nn

from penstock_engine.layers.feed_forward import FeedForward
from penstock_engine.layers.self_attention import SelfAttention
from penstock_engine.model_config import ModelConfig
from penstock_engine.models.decoder import DecoderLayer, DecoderLM


def phi3(config: ModelConfig, positions: int, dtype: torch.dtype, device: torch.device) -> DecoderLM:
    """Mistral whose checkpoint holds Q, K, V as one tensor, and gate and up too; a part of each head may turn."""

    def block(layer: int) -> nn.Module:
        attention = SelfAttention(config, layer, fused_checkpoint=True, dtype=dtype, device=device)
        feed_forward = FeedForward(config, config.intermediate_size, names=None, dtype=dtype, device=device)
        return DecoderLayer(config, attention, feed_forward, dtype=dtype, device=device)

    return DecoderLM(config, positions, block, dtype=dtype, device=device)
