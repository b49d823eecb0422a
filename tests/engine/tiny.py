"""Tiny random models, large enough in spread that a wrong angle, mask or slot shows in the first tokens."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from penstock_kernels.cpu import support
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    DynamicCache,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    Starcoder2Config,
    Starcoder2ForCausalLM,
)

VOCABULARY = 199
EOS = 7
SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,  # at the usual 0.02 a wrong rotary theta hardly changes a logit
    "bos_token_id": None,
    "eos_token_id": EOS,
}
CLASSES: dict[str, tuple[Any, Any]] = {
    "bloom": (BloomConfig, BloomForCausalLM),
    "cohere": (CohereConfig, CohereForCausalLM),
    "gpt2": (GPT2Config, GPT2LMHeadModel),
    "gpt_neox": (GPTNeoXConfig, GPTNeoXForCausalLM),
    "opt": (OPTConfig, OPTForCausalLM),
    "starcoder2": (Starcoder2Config, Starcoder2ForCausalLM),
    "gemma": (GemmaConfig, GemmaForCausalLM),
    "gemma2": (Gemma2Config, Gemma2ForCausalLM),
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "mixtral": (MixtralConfig, MixtralForCausalLM),
    "phi3": (Phi3Config, Phi3ForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "qwen3_moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM),
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 4.0,
    "beta_fast": 8.0,
    "original_max_position_embeddings": 64,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 500.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
    "long_factor": [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5],
}


@dataclass(frozen=True)
class TinyModel:
    """A folder as users have them, and the same weights in `transformers`."""

    folder: Path
    reference: PreTrainedModel
    at_once: int | None = None  # tokens that the reference takes in one pass, then one by one; None: all

    def logprobs(self, tokens: Sequence[int]) -> torch.Tensor:
        """The reference's log probabilities of what follows each token, [tokens, vocabulary]."""
        at_once = self.at_once or len(tokens)
        pieces = [list(tokens[:at_once]), *([token] for token in tokens[at_once:])]
        cache = DynamicCache() if len(pieces) > 1 else None
        with torch.inference_mode():
            passes = [self.reference(torch.tensor([piece]), past_key_values=cache).logits[0] for piece in pieces]
            return torch.cat(passes).log_softmax(-1)


SCORES = "torch" if support.lacking() else "compiled for AVX-512"  # what reads scores of logits in a CPU's memory
compiled_only = pytest.mark.skipif(bool(support.lacking()), reason=f"compiled kernels: {support.lacking()}")
KERNELS = ("torch", pytest.param("compiled", marks=compiled_only))


def make_tiny(folder: Path, kind: str = "llama", at_once: int | None = None, **overrides: Any) -> TinyModel:
    """Make a model of `kind`, its biases and norms random too, and save it to `folder`."""
    config_class, model_class = CLASSES[kind]
    torch.manual_seed(1234)
    model = model_class(config_class(**{**SHAPE, "pad_token_id": None, **overrides})).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_(0, 0.5)
            elif "norm" in name:
                weight.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    return TinyModel(folder, model, at_once)


def random_prompt(length: int, seed: int, vocabulary: int = VOCABULARY) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(vocabulary) for _ in range(length)]
