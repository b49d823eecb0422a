"""Folders as they are published, in the spelling of their day, read as transformers reads them.

Each config is read twice: as published, and as transformers saves it again, with every default filled in and today's
names. Both readings must agree.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from penstock_engine.model_config import ModelConfig, read_model_config
from transformers import AutoConfig

LLAMA_LIKE = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "num_attention_heads": 32,
    "num_hidden_layers": 4,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "vocab_size": 32000,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}
QWEN_LIKE = {**LLAMA_LIKE, "rope_theta": 1000000.0, "sliding_window": 4096, "use_sliding_window": False}
PHI_FACTORS = [1.0 + at / 10 for at in range(48)]
PHI3 = {**LLAMA_LIKE, "model_type": "phi3", "hidden_size": 3072, "num_key_value_heads": 32, "pad_token_id": 0}
GEMMA = {**LLAMA_LIKE, "hidden_size": 2304, "num_attention_heads": 8, "num_key_value_heads": 4, "num_hidden_layers": 8}
PUBLISHED: dict[str, dict[str, Any]] = {
    "llama-3.1": {
        **LLAMA_LIKE,
        "model_type": "llama",
        "rope_theta": 500000.0,
        "max_position_embeddings": 131072,
        "rope_scaling": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
    },
    "llama-dynamic": {**LLAMA_LIKE, "model_type": "llama", "rope_scaling": {"type": "dynamic", "factor": 4.0}},
    "mistral-0.1": {**LLAMA_LIKE, "model_type": "mistral", "rope_theta": 10000.0, "sliding_window": 4096},
    "mistral-0.1-by-default": {**LLAMA_LIKE, "model_type": "mistral", "rope_theta": 10000.0},
    "mistral-0.3": {**LLAMA_LIKE, "model_type": "mistral", "rope_theta": 1000000.0, "sliding_window": None},
    "mixtral": {
        **LLAMA_LIKE,
        "model_type": "mixtral",
        "num_experts_per_tok": 2,
        "num_local_experts": 8,
        "sliding_window": None,
    },
    "qwen2.5": {**QWEN_LIKE, "model_type": "qwen2", "max_window_layers": 28},
    "qwen2.5-windows": {**QWEN_LIKE, "model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 3},
    "qwen2.5-yarn": {
        **QWEN_LIKE,
        "model_type": "qwen2",
        "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"},
    },
    "qwen3": {**QWEN_LIKE, "model_type": "qwen3", "head_dim": 128, "sliding_window": None, "max_window_layers": 36},
    "qwen3-30b-a3b": {
        **QWEN_LIKE,
        "model_type": "qwen3_moe",
        "decoder_sparse_step": 2,
        "head_dim": 128,
        "mlp_only_layers": [3],
        "moe_intermediate_size": 768,
        "norm_topk_prob": True,
        "num_experts": 128,
        "num_experts_per_tok": 8,
    },
    "phi-3-mini-4k": {**PHI3, "original_max_position_embeddings": 4096, "rope_scaling": None, "sliding_window": 2047},
    "phi-3-mini-128k": {
        **PHI3,
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "rope_scaling": {"long_factor": PHI_FACTORS, "short_factor": PHI_FACTORS, "type": "longrope"},
        "sliding_window": 262144,
    },
    "phi-4-mini": {
        **PHI3,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "partial_rotary_factor": 0.75,
        "rope_scaling": {"long_factor": PHI_FACTORS, "short_factor": PHI_FACTORS, "type": "longrope"},
        "tie_word_embeddings": True,
    },
    "gemma": {**GEMMA, "model_type": "gemma", "head_dim": 256, "hidden_act": "gelu", "rope_theta": 10000.0},
    "gemma-2": {
        **GEMMA,
        "model_type": "gemma2",
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 224,
        "sliding_window": 4096,
    },
    "gemma-3": {
        **GEMMA,
        "model_type": "gemma3_text",
        "rope_local_base_freq": 10000,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "rope_theta": 1000000,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
    },
}


def read(folder: Path, config: dict[str, Any]) -> ModelConfig:
    (folder / "config.json").write_text(json.dumps(config))
    return read_model_config(folder)


@pytest.mark.parametrize("name", PUBLISHED)
def test_old_spellings_and_defaults_are_read_as_transformers_does(tmp_path: Path, name: str) -> None:
    published = read(tmp_path, PUBLISHED[name])
    AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert again.keys() - PUBLISHED[name].keys()  # it did fill in
    assert read(tmp_path, again) == published


def test_windows_by_layer(tmp_path: Path) -> None:
    assert read(tmp_path, PUBLISHED["mistral-0.1"]).windows == (4096,) * 4
    assert read(tmp_path, PUBLISHED["mistral-0.3"]).windows == (None,) * 4
    assert read(tmp_path, PUBLISHED["qwen2.5"]).windows == (None,) * 4
    assert read(tmp_path, PUBLISHED["qwen2.5-windows"]).windows == (None, None, None, 4096)
    assert read(tmp_path, PUBLISHED["gemma-2"]).windows == (4096, None) * 4
    assert read(tmp_path, PUBLISHED["gemma-3"]).windows == (512,) * 5 + (None, 512, 512)


def test_rotary_bases_and_reach(tmp_path: Path) -> None:
    gemma = read(tmp_path, PUBLISHED["gemma-3"])
    assert gemma.local_rope is not None
    assert (gemma.rope.theta, gemma.rope.factor, gemma.local_rope.theta) == (1e6, 8.0, 1e4)
    assert read(tmp_path, PUBLISHED["mixtral"]).rope.theta == 1e6
    assert read(tmp_path, PUBLISHED["qwen2.5-yarn"]).max_positions == 131072
    assert read(tmp_path, PUBLISHED["phi-4-mini"]).rope.dims(128) == 96


def test_experts_by_layer(tmp_path: Path) -> None:
    experts = read(tmp_path, PUBLISHED["qwen3-30b-a3b"]).experts
    assert experts is not None
    assert (experts.count, experts.chosen, experts.intermediate_size) == (128, 8, 768)
    assert experts.layers == (False, True, False, False)  # every second, and the last is dense by name
