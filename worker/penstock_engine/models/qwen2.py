"""Qwen2 and Qwen2.5. Source: Yang et al., "Qwen2 Technical Report", 2024."""

import torch
from torch import nn

from penstock_engine.layers.feed_forward import FeedForward
from penstock_engine.layers.self_attention import SelfAttention
from penstock_engine.model_config import ModelConfig
from penstock_engine.models.decoder import DecoderLayer, DecoderLM


def qwen2(config: ModelConfig, positions: int, dtype: torch.dtype, device: torch.device) -> DecoderLM:
    """Llama with biases on Q, K and V."""

    def block(layer: int) -> nn.Module:
        attention = SelfAttention(config, layer, qkv_bias=True, dtype=dtype, device=device)
        feed_forward = FeedForward(config, config.intermediate_size, dtype=dtype, device=device)
        return DecoderLayer(config, attention, feed_forward, dtype=dtype, device=device)

    return DecoderLM(config, positions, block, dtype=dtype, device=device)
