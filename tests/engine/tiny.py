"""Tiny random models, large enough in spread that a wrong angle, mask or slot shows in the first tokens."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
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
CLASSES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@dataclass(frozen=True)
class TinyModel:
    """A folder as users have them, and the same weights in `transformers`."""

    folder: Path
    reference: PreTrainedModel

    def logprobs(self, tokens: Sequence[int]) -> torch.Tensor:
        """The reference's log probabilities of what follows each token, [tokens, vocabulary]."""
        with torch.inference_mode():
            logits: torch.Tensor = self.reference(torch.tensor([list(tokens)])).logits[0]
            return logits.log_softmax(-1)


def make_tiny(folder: Path, kind: str = "llama", **overrides: Any) -> TinyModel:
    """Make a model of `kind`, its biases and norms random too, and save it to `folder`."""
    config_class, model_class = CLASSES[kind]
    torch.manual_seed(1234)
    model = model_class(config_class(**{**SHAPE, **overrides})).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_(0, 0.5)
            elif "norm" in name:
                weight.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    return TinyModel(folder, model)


def random_prompt(length: int, seed: int, vocabulary: int = VOCABULARY) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(vocabulary) for _ in range(length)]
