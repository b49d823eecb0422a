"""The architectures that run natively, by the `model_type` of their config.json."""

from collections.abc import Callable

import torch

from penstock_engine.model_config import ModelConfig
from penstock_engine.models.causal_lm import CausalLM
from penstock_engine.models.decoder import DecoderLM
from penstock_engine.models.gemma import gemma, gemma2, gemma3
from penstock_engine.models.llama import llama
from penstock_engine.models.mistral import mistral
from penstock_engine.models.mixtral import mixtral
from penstock_engine.models.phi3 import phi3
from penstock_engine.models.qwen2 import qwen2
from penstock_engine.models.qwen3 import qwen3

Build = Callable[[ModelConfig, int, torch.dtype, torch.device], DecoderLM]
MODELS: dict[str, Build] = {
    "gemma": gemma,
    "gemma2": gemma2,
    "gemma3_text": gemma3,
    "llama": llama,
    "mistral": mistral,
    "mixtral": mixtral,
    "phi3": phi3,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "qwen3_moe": qwen3,
}

__all__ = ["MODELS", "Build", "CausalLM", "DecoderLM"]
