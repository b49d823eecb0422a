"""What config.json says of a model, checked, in one shape for every architecture."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from penstock_engine.errors import ModelCorrupt, ModelNotFound, ModelUnsupported

RopeKind = Literal["default", "linear", "llama3"]
# What each kind needs besides theta: our field by the name in config.json.
ROPE_FIELDS: dict[str, dict[str, str]] = {
    "default": {},
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
        "original_max_positions": "original_max_position_embeddings",
    },
}


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding; the fields after `factor` matter to llama3 alone."""

    theta: float
    kind: RopeKind = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: float = 8192


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shapes and constants of a decoder."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    max_positions: int
    rope: RopeConfig
    tied_embeddings: bool
    attention_bias: bool
    mlp_bias: bool
    dtype: str  # of the checkpoint, as config.json names it
    eos_ids: tuple[int, ...]


def read_model_config(folder: Path) -> ModelConfig:
    """Read config.json and generation_config.json of a Hugging Face folder. Raises ModelLoadError."""
    if not folder.is_dir():
        raise ModelNotFound(folder, "no such folder", "give the folder that holds config.json")
    return _Reader(folder).model_config()


class _Reader:
    """Fields of one config.json, each error naming the field."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "config.json"
        self._raw = read_json(self._path)

    def model_config(self) -> ModelConfig:
        self._refuse_what_we_do_not_run()
        hidden, heads = self._int("hidden_size"), self._int("num_attention_heads")
        model_type = self.model_type
        config = ModelConfig(
            model_type=model_type,
            vocab_size=self._int("vocab_size"),
            hidden_size=hidden,
            intermediate_size=self._int("intermediate_size"),
            layers=self._int("num_hidden_layers"),
            heads=heads,
            kv_heads=self._int("num_key_value_heads", heads),
            head_dim=self._int("head_dim", 128 if model_type == "qwen3" else hidden // heads),
            norm_eps=self._float(self._raw, "rms_norm_eps", 1e-6),
            max_positions=self._int("max_position_embeddings"),
            rope=self._rope(),
            tied_embeddings=bool(self._raw.get("tie_word_embeddings", False)),
            attention_bias=bool(self._raw.get("attention_bias", False)),
            mlp_bias=bool(self._raw.get("mlp_bias", False)),
            dtype=str(self._raw.get("dtype") or self._raw.get("torch_dtype") or "float32"),
            eos_ids=self._eos_ids(),
        )
        self._check_shapes(config)
        return config

    def _check_shapes(self, config: ModelConfig) -> None:
        if config.heads % config.kv_heads:
            problem = f"num_attention_heads {config.heads} is no multiple of num_key_value_heads {config.kv_heads}"
            raise ModelCorrupt(self._path, problem, "the attention heads must share the K/V heads evenly")
        if config.head_dim % 2:
            raise ModelCorrupt(self._path, f"head_dim is {config.head_dim}", "it must be even, to be rotated in pairs")
        if any(not 0 <= each < config.vocab_size for each in config.eos_ids):
            problem = f"eos_token_id {list(config.eos_ids)} is outside the vocabulary"
            raise ModelCorrupt(self._path, problem, f"it must be from 0 to {config.vocab_size - 1}")

    @property
    def model_type(self) -> str:
        return str(self._raw.get("model_type", ""))

    def _refuse_what_we_do_not_run(self) -> None:
        raw = self._raw
        if raw.get("hidden_act", "silu") != "silu":
            raise self._unsupported("hidden_act", raw["hidden_act"], "silu")
        if raw.get("quantization_config"):
            raise self._unsupported("quantization_config", "a quantized checkpoint", "an unquantized one")
        slides = raw.get("use_sliding_window") or "sliding_attention" in (raw.get("layer_types") or ())
        if slides:
            raise self._unsupported("use_sliding_window", "sliding-window attention", "full attention in all layers")

    def _rope(self) -> RopeConfig:
        """Both spellings: `rope_parameters` (transformers 5) and `rope_theta` with `rope_scaling` (before)."""
        raw = self._raw.get("rope_parameters") or {
            "rope_theta": self._raw.get("rope_theta", 10000.0),
            **(self._raw.get("rope_scaling") or {}),
        }
        kind = raw.get("rope_type") or raw.get("type") or "default"
        if kind not in ROPE_FIELDS:
            raise self._unsupported("rope_type", kind, f"one of {', '.join(ROPE_FIELDS)}")
        if raw.get("partial_rotary_factor", 1.0) != 1.0:
            raise self._unsupported("partial_rotary_factor", raw["partial_rotary_factor"], "1.0")
        fields = {ours: self._float(raw, theirs) for ours, theirs in ROPE_FIELDS[kind].items()}
        return RopeConfig(self._float(raw, "rope_theta", 10000.0), cast("RopeKind", kind), **fields)

    def _eos_ids(self) -> tuple[int, ...]:
        """generation_config.json's word goes before config.json's."""
        path = self._folder / "generation_config.json"
        generation = read_json(path) if path.exists() else {}
        raw = generation.get("eos_token_id", self._raw.get("eos_token_id"))
        ids = raw if isinstance(raw, list) else [] if raw is None else [raw]
        if not all(isinstance(each, int) for each in ids):
            raise ModelCorrupt(self._path, f"eos_token_id is {raw!r}", "it must be a token id or a list of them")
        return tuple(ids)

    def _float(self, raw: Mapping[str, Any], field: str, default: float | None = None) -> float:
        value = raw.get(field, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            raise ModelCorrupt(self._path, f"{field} is {value!r}", f"{field} must be a number above 0")
        return float(value)

    def _int(self, field: str, default: int | None = None) -> int:
        value = self._raw.get(field)
        if value is None:
            value = default
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ModelCorrupt(self._path, f"{field} is {value!r}", f"{field} must be a whole number of at least 1")
        return value

    def _unsupported(self, field: str, value: object, served: str) -> ModelUnsupported:
        return ModelUnsupported(self._path, f"{field} is {value!r}", f"this engine runs {served}")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from `path`; ModelNotFound or ModelCorrupt otherwise."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelNotFound(path, "no such file", "a model folder in Hugging Face form has it") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as cause:
        raise ModelCorrupt(path, f"not JSON ({cause})", "copy the file again") from None
    if not isinstance(value, dict):
        raise ModelCorrupt(path, f"holds a {type(value).__name__}", "it must hold a JSON object")
    return value
