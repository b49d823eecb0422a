"""Mixtral. Source: Jiang et al., "Mixtral of Experts", 2024."""

import torch
from torch import nn

from penstock_engine.layers.feed_forward import Names, SparseFeedForward
from penstock_engine.layers.self_attention import SelfAttention
from penstock_engine.model_config import ExpertsConfig, ModelConfig
from penstock_engine.models.decoder import DecoderLayer, DecoderLM

NAMES = Names(gate="w1", up="w3", down="w2")


def mixtral(config: ModelConfig, positions: int, dtype: torch.dtype, device: torch.device) -> DecoderLM:
    """Mistral with experts in every layer."""
    experts: ExpertsConfig | None = config.experts
    assert experts is not None  # the reader of config.json sees to it

    def block(layer: int) -> nn.Module:
        attention = SelfAttention(config, layer, dtype=dtype, device=device)
        feed_forward = SparseFeedForward(config, experts, names=NAMES, dtype=dtype, device=device)
        return DecoderLayer(config, attention, feed_forward, dtype=dtype, device=device)

    spelling = {".mlp.": ".block_sparse_moe."}
    return DecoderLM(config, positions, block, spelling=spelling, dtype=dtype, device=device)
