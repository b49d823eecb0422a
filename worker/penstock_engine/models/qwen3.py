"""Qwen3, dense. Source: Yang et al., "Qwen3 Technical Report", 2025."""

import torch

from penstock_engine.model_config import ModelConfig
from penstock_engine.models.decoder import CausalLM, SelfAttention


def qwen3(config: ModelConfig, positions: int, dtype: torch.dtype, device: torch.device) -> CausalLM:
    """Llama with an RMS norm on each head of Q and K before the rotation."""

    def attention(layer: int) -> SelfAttention:
        bias = config.attention_bias
        return SelfAttention(config, layer, qkv_bias=bias, out_bias=bias, qk_norm=True, dtype=dtype, device=device)

    return CausalLM(config, positions, attention, dtype=dtype, device=device)
