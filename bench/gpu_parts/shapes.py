"""Models by their shape, how their weights and K/V may be kept, and the least that a step on them costs."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from penstock_engine.config import KVDType, Quantization

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
BF16_BYTES, SCALE_BYTES = 2, 2
INT4_BYTES = 0.5 + 4 / 128  # a code, and its share of the scale and zero that 128 have together


@dataclass(frozen=True, slots=True)
class Precision:
    """What the engine is asked for, bytes of a weight of a layer, and the dtype that its products are of."""

    name: str
    quantization: Quantization | None = None
    kv_dtype: KVDType = "auto"
    weight_bytes: float = BF16_BYTES
    arithmetic: str = "bfloat16"


PRECISIONS = {
    each.name: each
    for each in (
        Precision("bf16"),
        Precision("int4", "int4", weight_bytes=INT4_BYTES),
        Precision("int8", "int8", weight_bytes=1, arithmetic="int8"),
        Precision("fp8", "fp8", weight_bytes=1, arithmetic="fp8"),
        Precision("bf16-kv-fp8", kv_dtype="fp8"),
        Precision("fp8-kv-fp8", "fp8", "fp8", weight_bytes=1, arithmetic="fp8"),
    )
}


@dataclass(frozen=True, slots=True)
class Cost:
    """The least that something costs: bytes of device memory, and operations by the dtype of their operands."""

    moved: float
    flops: Mapping[str, float]

    def floor(self, bytes_per_s: float, flop_per_s: Mapping[str, float]) -> float:
        """Seconds, on a device of these ceilings. Raises KeyError where the ceiling of a dtype is not known."""
        computing = sum(count / flop_per_s[dtype] for dtype, count in self.flops.items())
        return max(self.moved / bytes_per_s, computing)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured of a shape. `context` is a prompt's tokens; each prefill is `prompts` of `length`."""

    batches: tuple[int, ...]
    context: int
    steps: int  # of decoding, timed
    prompts: int
    length: int
    budget: int  # tokens of one step
    peer_batches: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama, and what is measured of it."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    positions: int
    plan: Plan

    @property
    def config(self) -> dict[str, object]:
        """What config.json says. It never ends of itself: it has no end of sequence."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "dtype": "bfloat16",
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.positions,
            "rms_norm_eps": 1e-5,
            "rope_parameters": LLAMA3_ROPE,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": False,
            "bos_token_id": None,
            "eos_token_id": None,
        }

    @property
    def layer_weights(self) -> int:
        """Of the products of all layers."""
        attention = (2 * self.heads + 2 * self.kv_heads) * self.head_dim * self.hidden
        return self.layers * (attention + 3 * self.hidden * self.inner)

    @property
    def head_weights(self) -> int:
        return self.vocabulary * self.hidden

    def decode(self, batch: int, context: float, precision: Precision) -> Cost:
        """Of one step in which each of `batch` sequences, `context` tokens long, decodes one token."""
        kept = self.head_dim * BF16_BYTES if precision.kv_dtype == "auto" else self.head_dim + SCALE_BYTES
        kv = batch * context * self.layers * 2 * self.kv_heads * kept
        weights = self.layer_weights * precision.weight_bytes + self.head_weights * BF16_BYTES
        attention = 4 * batch * context * self.heads * self.head_dim * self.layers
        return self._cost(weights + kv, precision, batch, attention + 2 * batch * self.head_weights)

    def prefill(self, prompts: int, length: int, precision: Precision) -> Cost:
        """Of `prompts` of `length` tokens; the head sees the last of each."""
        attention = 2 * prompts * length * (length + 1) * self.heads * self.head_dim * self.layers  # half of the square
        weights = self.layer_weights * precision.weight_bytes + self.head_weights * BF16_BYTES
        return self._cost(weights, precision, prompts * length, attention + 2 * prompts * self.head_weights)

    def _cost(self, moved: float, precision: Precision, tokens: int, in_bf16: float) -> Cost:
        flops = {precision.arithmetic: 2.0 * tokens * self.layer_weights}
        flops["bfloat16"] = flops.get("bfloat16", 0.0) + in_bf16
        return Cost(moved, MappingProxyType(flops))


SHAPES = {
    "llama-3.1-8b": Shape(
        *(4096, 14336, 32, 32, 8, 128, 128_256, 131_072),
        Plan((1, 8, 64, 256), context=1024, steps=48, prompts=8, length=2048, budget=8192, peer_batches=(1, 8, 64)),
    ),
    # Of another depth and width, to see that all runs.
    "quick": Shape(
        *(1024, 2816, 4, 8, 2, 128, 32_000, 4096),
        Plan((1, 8), context=128, steps=16, prompts=2, length=256, budget=512, peer_batches=(1, 8)),
    ),
    "dry": Shape(
        *(64, 96, 2, 4, 2, 16, 199, 256),
        Plan((1, 3), context=17, steps=3, prompts=2, length=20, budget=32, peer_batches=(2,)),
    ),
}
