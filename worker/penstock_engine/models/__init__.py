"""The architectures that run natively, by the `model_type` of their config.json."""

from collections.abc import Callable

import torch

from penstock_engine.model_config import ModelConfig
from penstock_engine.models.decoder import CausalLM
from penstock_engine.models.llama import llama
from penstock_engine.models.qwen2 import qwen2
from penstock_engine.models.qwen3 import qwen3

Build = Callable[[ModelConfig, int, torch.dtype, torch.device], CausalLM]
MODELS: dict[str, Build] = {"llama": llama, "qwen2": qwen2, "qwen3": qwen3}

__all__ = ["MODELS", "Build", "CausalLM"]
