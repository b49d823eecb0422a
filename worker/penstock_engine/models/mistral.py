"""Mistral. Source: Jiang et al., "Mistral 7B", 2023."""

import torch
from torch import nn

from penstock_engine.layers.feed_forward import FeedForward
from penstock_engine.layers.self_attention import SelfAttention
from penstock_engine.model_config import ModelConfig
from penstock_engine.models.decoder import DecoderLayer, DecoderLM


def mistral(config: ModelConfig, positions: int, dtype: torch.dtype, device: torch.device) -> DecoderLM:
    """Llama without biases; the sliding window, where the folder has one, is in `config.windows`."""

    def block(layer: int) -> nn.Module:
        attention = SelfAttention(config, layer, dtype=dtype, device=device)
        feed_forward = FeedForward(config, config.intermediate_size, dtype=dtype, device=device)
        return DecoderLayer(config, attention, feed_forward, dtype=dtype, device=device)

    return DecoderLM(config, positions, block, dtype=dtype, device=device)
