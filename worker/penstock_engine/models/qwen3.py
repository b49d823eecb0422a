"""Qwen3, dense and with experts. Source: Yang et al., "Qwen3 Technical Report", 2025."""

import torch
from torch import nn

from penstock_engine.layers.feed_forward import FeedForward, SparseFeedForward
from penstock_engine.layers.norm import RMSNorm
from penstock_engine.layers.self_attention import SelfAttention
from penstock_engine.model_config import ModelConfig
from penstock_engine.models.decoder import DecoderLayer, DecoderLM


def qwen3(config: ModelConfig, positions: int, dtype: torch.dtype, device: torch.device) -> DecoderLM:
    """Llama with an RMS norm on each head of Q and K before the rotation; experts in the layers that have them."""

    def block(layer: int) -> nn.Module:
        bias = config.attention_bias
        attention = SelfAttention(
            config, layer, qkv_bias=bias, out_bias=bias, head_norm=RMSNorm, dtype=dtype, device=device
        )
        return DecoderLayer(config, attention, feed_forward(layer), dtype=dtype, device=device)

    def feed_forward(layer: int) -> nn.Module:
        if config.experts is not None and config.experts.layers[layer]:
            return SparseFeedForward(config, config.experts, dtype=dtype, device=device)
        return FeedForward(config, config.intermediate_size, dtype=dtype, device=device)

    return DecoderLM(config, positions, block, dtype=dtype, device=device)
