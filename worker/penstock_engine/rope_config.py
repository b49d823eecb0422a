"""What config.json says of rotary positions, checked: theta, the share of each head that turns, and the scaling."""

import math
from dataclasses import dataclass
from typing import Any, Literal, cast

from penstock_engine.config_fields import Fields

RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope"]
KINDS: tuple[str, ...] = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding. Each kind of scaling reads the fields that its function in `layers.rotary` names."""

    theta: float
    kind: RopeKind = "default"
    share: float = 1.0  # of a head's dimensions, the first ones, that are rotated
    factor: float = 1.0
    original_max_positions: float = 8192
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0  # both cosines and sines are multiplied by it
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()

    def dims(self, head_dim: int) -> int:
        """How many dimensions of a head are rotated."""
        return int(head_dim * self.share)

    @property
    def reach(self) -> float:
        """Positions that the scaling extends the model to; 0 where max_position_embeddings already counts them."""
        return self.original_max_positions * self.factor if self.kind in ("dynamic", "yarn") else 0


def read_rope(config: Fields, rope: dict[str, Any], head_dim: int) -> RopeConfig:
    """`rope` is the object under `rope_parameters` or its older spelling. Raises ModelLoadError."""
    fields = Fields(config.path, {"rope_theta": 10000.0, **rope})
    kind = _kind(config, rope)
    if kind not in KINDS:
        raise fields.unsupported("rope_type", kind, f"one of {', '.join(KINDS)}")
    share = fields.number("partial_rotary_factor", config.number("partial_rotary_factor", 1.0))
    dims = int(head_dim * share)
    if dims % 2 or not 0 < dims <= head_dim:
        raise fields.corrupt("partial_rotary_factor", f"such that an even part of the {head_dim} dimensions turns")
    scaling = _scaling(kind, config, fields, dims)
    return RopeConfig(fields.number("rope_theta"), cast("RopeKind", kind), share, **scaling)


def _scaling(kind: str, config: Fields, rope: Fields, dims: int) -> dict[str, Any]:
    match kind:
        case "linear":
            return {"factor": rope.number("factor")}
        case "dynamic":
            trained = config.number("max_position_embeddings")
            return {"factor": rope.number("factor"), "original_max_positions": trained}
        case "llama3":
            return _llama3(config, rope)
        case "yarn":
            return _yarn(config, rope)
        case "longrope":
            return _longrope(config, rope, dims)
        case _:
            return {}


def _kind(config: Fields, rope: dict[str, Any]) -> str:
    """Early Phi-3 folders say `su` or `yarn` and mean longrope."""
    kind = str(rope.get("rope_type") or rope.get("type") or "default")
    return "longrope" if config.raw.get("model_type") == "phi3" and kind in ("su", "yarn") else kind


def _trained(config: Fields, rope: Fields) -> float:
    """Positions that the model was trained on: config.json's own word, the scaling's, or all that it has."""
    field = "original_max_position_embeddings"
    for fields in (config, rope):
        if fields.raw.get(field) is not None:
            return fields.number(field)
    return config.number("max_position_embeddings")


def _llama3(config: Fields, rope: Fields) -> dict[str, Any]:
    return {
        "factor": rope.number("factor"),
        "low_freq_factor": rope.number("low_freq_factor"),
        "high_freq_factor": rope.number("high_freq_factor"),
        "original_max_positions": _trained(config, rope),
    }


def _yarn(config: Fields, rope: Fields) -> dict[str, Any]:
    trained = _trained(config, rope)
    factor = rope.optional_number("factor") or config.number("max_position_embeddings") / trained
    return {
        "factor": factor,
        "original_max_positions": trained,
        "beta_fast": rope.optional_number("beta_fast") or 32.0,
        "beta_slow": rope.optional_number("beta_slow") or 1.0,
        "truncate": rope.flag("truncate", default=True),
        "attention_factor": rope.optional_number("attention_factor") or _yarn_attention(rope, factor),
    }


def _yarn_attention(rope: Fields, factor: float) -> float:
    """Section 3.4 of the paper; `mscale` and `mscale_all_dim` together are DeepSeek's way to say it."""

    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    mscale, all_dim = rope.raw.get("mscale"), rope.raw.get("mscale_all_dim")
    return scale(mscale) / scale(all_dim) if mscale and all_dim else scale(1.0)


def _longrope(config: Fields, rope: Fields, dims: int) -> dict[str, Any]:
    trained = _trained(config, rope)
    factor = rope.optional_number("factor") or config.number("max_position_embeddings") / trained
    inferred = math.sqrt(1 + math.log(factor) / math.log(trained)) if factor > 1 else 1.0
    return {
        "original_max_positions": trained,
        "attention_factor": rope.optional_number("attention_factor") or inferred,
        "short_factors": rope.numbers("short_factor", dims // 2),
        "long_factors": rope.numbers("long_factor", dims // 2),
    }
