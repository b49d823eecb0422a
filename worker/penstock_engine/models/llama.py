"""Llama 2 and 3.x. Source: Dubey et al., "The Llama 3 Herd of Models", 2024."""

import torch
from torch import nn

from penstock_engine.layers.feed_forward import FeedForward
from penstock_engine.layers.self_attention import SelfAttention
from penstock_engine.model_config import ModelConfig
from penstock_engine.models.decoder import DecoderLayer, DecoderLM


def llama(config: ModelConfig, positions: int, dtype: torch.dtype, device: torch.device) -> DecoderLM:
    """`attention_bias` puts a bias on all four attention projections."""

    def block(layer: int) -> nn.Module:
        bias = config.attention_bias
        attention = SelfAttention(config, layer, qkv_bias=bias, out_bias=bias, dtype=dtype, device=device)
        feed_forward = FeedForward(config, config.intermediate_size, dtype=dtype, device=device)
        return DecoderLayer(config, attention, feed_forward, dtype=dtype, device=device)

    return DecoderLM(config, positions, block, dtype=dtype, device=device)
