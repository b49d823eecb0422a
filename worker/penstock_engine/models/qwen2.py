"""Qwen2 and Qwen2.5. Source: Yang et al., "Qwen2 Technical Report", 2024."""

import torch

from penstock_engine.model_config import ModelConfig
from penstock_engine.models.decoder import CausalLM, SelfAttention


def qwen2(config: ModelConfig, positions: int, dtype: torch.dtype, device: torch.device) -> CausalLM:
    """Llama with biases on Q, K and V."""

    def attention(layer: int) -> SelfAttention:
        return SelfAttention(config, layer, qkv_bias=True, out_bias=False, qk_norm=False, dtype=dtype, device=device)

    return CausalLM(config, positions, attention, dtype=dtype, device=device)
