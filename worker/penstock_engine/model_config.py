"""What config.json says of a model, checked, in one shape for every architecture."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock_engine.config_fields import Fields
from penstock_engine.errors import ModelCorrupt, ModelNotFound
from penstock_engine.formats import Format, read_format
from penstock_engine.rope_config import RopeConfig, read_rope

GEMMA = {"head_dim": 256, "tie_word_embeddings": True, "hidden_activation": "gelu_pytorch_tanh"}
GEMMA_2_3 = {**GEMMA, "query_pre_attn_scalar": 256, "sliding_window": 4096}
# What a folder may leave out, as the family's own code fills it in.
FAMILY_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "phi3": {},
    "mistral": {"sliding_window": 4096},
    "mixtral": {"rope_theta": 1e6, "num_experts_per_tok": 2, "num_local_experts": 8, "norm_topk_prob": True},
    "qwen2": {"max_window_layers": 28, "sliding_window": 4096},
    "qwen3": {"max_window_layers": 28, "sliding_window": 4096, "head_dim": 128},
    "qwen3_moe": {"num_experts_per_tok": 8, "sliding_window": 4096},
    "gemma": GEMMA,
    "gemma2": {
        **GEMMA_2_3,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "sliding_window_pattern": 2,
    },
    "gemma3_text": {**GEMMA_2_3, "rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window_pattern": 6},
}
NATIVE = frozenset(FAMILY_DEFAULTS)
SLIDES_EVERYWHERE = ("mistral", "mixtral", "phi3")
ACTIVATIONS = ("silu", "gelu_pytorch_tanh")


@dataclass(frozen=True, slots=True)
class ExpertsConfig:
    """Feed-forward blocks of which each token takes `chosen` out of `count`."""

    count: int
    chosen: int
    intermediate_size: int
    normalised: bool  # the weights of the chosen add up to 1
    layers: tuple[bool, ...]  # which layers are so


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
    activation: str = "silu"
    windows: tuple[int | None, ...] = ()  # of each layer: how many tokens it looks back on, itself included; None: all
    local_rope: RopeConfig | None = None  # of the layers with a window, where they have their own
    experts: ExpertsConfig | None = None
    query_scalar: float | None = None  # scores are divided by its root; None: head_dim
    attention_softcap: float | None = None
    logits_softcap: float | None = None
    format: Format | None = None  # of the linear layers that the checkpoint stores in fewer bits

    def window(self, layer: int) -> int | None:
        return self.windows[layer] if self.windows else None


def read_model_config(folder: Path) -> ModelConfig:
    """Read config.json and generation_config.json of a Hugging Face folder. Raises ModelLoadError."""
    if not folder.is_dir():
        raise ModelNotFound(folder, "no such folder", "give the folder that holds config.json")
    reader = _Reader(folder)
    if reader.model_type not in NATIVE:
        from penstock_engine.models.bridge_config import read_bridged_config  # needs transformers: seconds of import

        return read_bridged_config(folder)
    return reader.model_config()


class _Reader:
    """Fields of one config.json, each error naming the field."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "config.json"
        raw = read_json(self._path)
        self.model_type = str(raw.get("model_type", ""))
        self._raw = {**FAMILY_DEFAULTS.get(self.model_type, {}), **raw}
        self._fields = Fields(self._path, self._raw)

    def model_config(self) -> ModelConfig:
        self._refuse_what_we_do_not_run()
        count, flag = self._fields.count, self._fields.flag
        hidden, heads = count("hidden_size"), count("num_attention_heads")
        layers, head_dim = count("num_hidden_layers"), self._head_dim(hidden // heads)
        rope, windows = self._rope("full_attention", head_dim), self._windows(layers)
        config = ModelConfig(
            model_type=self.model_type,
            vocab_size=count("vocab_size"),
            hidden_size=hidden,
            intermediate_size=count("intermediate_size"),
            layers=layers,
            heads=heads,
            kv_heads=count("num_key_value_heads", heads),
            head_dim=head_dim,
            norm_eps=self._fields.number("rms_norm_eps", 1e-6),
            max_positions=max(count("max_position_embeddings"), int(rope.reach)),
            rope=rope,
            tied_embeddings=flag("tie_word_embeddings"),
            attention_bias=flag("attention_bias"),
            mlp_bias=flag("mlp_bias"),
            dtype=str(self._raw.get("dtype") or self._raw.get("torch_dtype") or "float32"),
            eos_ids=read_eos_ids(self._folder, self._raw.get("eos_token_id")),
            activation=self._activation(),
            windows=windows,
            local_rope=self._rope("sliding_attention", head_dim) if self.model_type == "gemma3_text" else None,
            experts=self._experts(layers),
            query_scalar=self._fields.optional_number("query_pre_attn_scalar"),
            attention_softcap=self._fields.optional_number("attn_logit_softcapping"),
            logits_softcap=self._fields.optional_number("final_logit_softcapping"),
            format=read_format(self._fields),
        )
        self._check_shapes(config)
        return config

    def _head_dim(self, default: int) -> int:
        head_dim = self._fields.count("head_dim", default)
        if head_dim % 2:
            raise ModelCorrupt(self._path, f"head_dim is {head_dim}", "it must be even, to be rotated in pairs")
        return head_dim

    def _check_shapes(self, config: ModelConfig) -> None:
        if config.heads % config.kv_heads:
            problem = f"num_attention_heads {config.heads} is no multiple of num_key_value_heads {config.kv_heads}"
            raise ModelCorrupt(self._path, problem, "the attention heads must share the K/V heads evenly")
        if any(not 0 <= each < config.vocab_size for each in config.eos_ids):
            problem = f"eos_token_id {list(config.eos_ids)} is outside the vocabulary"
            raise ModelCorrupt(self._path, problem, f"it must be from 0 to {config.vocab_size - 1}")
        experts = config.experts
        if experts is not None and experts.chosen > experts.count:
            raise self._fields.corrupt("num_experts_per_tok", f"at most the number of experts, {experts.count}")

    def _refuse_what_we_do_not_run(self) -> None:
        if self._raw.get("use_bidirectional_attention"):
            raise self._fields.unsupported("use_bidirectional_attention", True, "attention to the past alone")

    def _activation(self) -> str:
        """Gemma's folders may say gelu in `hidden_act`, and mean what `hidden_activation` says, its tanh form."""
        name = self._raw.get("hidden_activation") or self._raw.get("hidden_act", "silu")
        if name not in ACTIVATIONS:
            raise self._fields.unsupported("hidden_act", name, " or ".join(ACTIVATIONS))
        return str(name)

    def _windows(self, layers: int) -> tuple[int | None, ...]:
        kinds = self._layer_kinds(layers)
        if "sliding_attention" not in kinds:
            return (None,) * layers
        width = self._fields.optional_count("sliding_window")
        return tuple(width if kind == "sliding_attention" else None for kind in kinds)

    def _layer_kinds(self, layers: int) -> list[str]:
        """full_attention or sliding_attention for each layer, by the word of each family."""
        raw, fields = self._raw, self._fields
        kinds = raw.get("layer_types")
        if self.model_type in SLIDES_EVERYWHERE or (self.model_type == "qwen3_moe" and raw.get("use_sliding_window")):
            kinds = ["sliding_attention"] * layers
        elif "use_sliding_window" in raw and not raw["use_sliding_window"]:
            kinds = ["full_attention"] * layers
        elif kinds is None and raw.get("use_sliding_window"):
            full = fields.count("max_window_layers")
            kinds = ["full_attention" if at < full else "sliding_attention" for at in range(layers)]
        elif kinds is None and "sliding_window_pattern" in raw:
            every = fields.count("sliding_window_pattern")
            kinds = ["sliding_attention" if (at + 1) % every else "full_attention" for at in range(layers)]
        kinds = kinds or ["full_attention"] * layers
        if len(kinds) != layers or not set(kinds) <= {"full_attention", "sliding_attention"}:
            raise fields.unsupported("layer_types", kinds, f"full_attention and sliding_attention in {layers} layers")
        return list(kinds)

    def _experts(self, layers: int) -> ExpertsConfig | None:
        fields, raw = self._fields, self._raw
        if self.model_type not in ("mixtral", "qwen3_moe"):
            return None
        dense = set(raw.get("mlp_only_layers") or ())
        every = fields.count("decoder_sparse_step", 1)
        own_size = "moe_intermediate_size" if self.model_type == "qwen3_moe" else "intermediate_size"
        return ExpertsConfig(
            count=fields.count("num_experts" if "num_experts" in raw else "num_local_experts"),
            chosen=fields.count("num_experts_per_tok"),
            intermediate_size=fields.count(own_size),
            normalised=fields.flag("norm_topk_prob"),
            layers=tuple(at not in dense and (at + 1) % every == 0 for at in range(layers)),
        )

    def _rope(self, layer_kind: str, head_dim: int) -> RopeConfig:
        """Both spellings: `rope_parameters` (transformers 5) and `rope_theta` with `rope_scaling` (before)."""
        raw = self._raw.get("rope_parameters")
        if raw and layer_kind in raw:
            raw = raw[layer_kind]
        elif layer_kind == "sliding_attention":
            raw = {"rope_theta": self._fields.number("rope_local_base_freq")}
        theta = {"rope_theta": self._raw.get("rope_theta", 10000.0)}
        return read_rope(self._fields, {**theta, **(raw or self._raw.get("rope_scaling") or {})}, head_dim)


def read_eos_ids(folder: Path, in_config: Any) -> tuple[int, ...]:
    """The ids that end a text: generation_config.json's word goes before config.json's. Raises ModelCorrupt."""
    path = folder / "generation_config.json"
    generation = read_json(path) if path.exists() else {}
    raw = generation.get("eos_token_id", in_config)
    ids = raw if isinstance(raw, list) else [] if raw is None else [raw]
    if not all(isinstance(each, int) for each in ids):
        raise ModelCorrupt(
            folder / "config.json", f"eos_token_id is {raw!r}", "it must be a token id or a list of them"
        )
    return tuple(ids)


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
