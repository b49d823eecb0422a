"""Llama 2 and 3.x. Source: Dubey et al., "The Llama 3 Herd of Models", 2024."""

import torch

from penstock_engine.model_config import ModelConfig
from penstock_engine.models.decoder import CausalLM, SelfAttention


def llama(config: ModelConfig, positions: int, dtype: torch.dtype, device: torch.device) -> CausalLM:
    """`attention_bias` puts a bias on all four attention projections."""

    def attention(layer: int) -> SelfAttention:
        bias = config.attention_bias
        return SelfAttention(config, layer, qkv_bias=bias, out_bias=bias, qk_norm=False, dtype=dtype, device=device)

    return CausalLM(config, positions, attention, dtype=dtype, device=device)
