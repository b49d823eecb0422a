"""Causal LMs that are not native here but that `transformers` has: what their config says, and which are refused.

`transformers` is imported by this module and by `bridge` alone, and they only when such a folder is opened: the
import takes seconds.
"""

from pathlib import Path
from typing import Any

from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from penstock_engine.errors import ModelUnsupported
from penstock_engine.model_config import NATIVE, ModelConfig, read_eos_ids, read_json
from penstock_engine.rope_config import RopeConfig

STATEFUL_ROPE = {"dynamic", "longrope"}  # there, one request's length would turn its neighbours' angles
LAYER_KINDS = {"full_attention", "sliding_attention"}


def read_bridged_config(folder: Path) -> ModelConfig:
    """The shapes that paging needs. Raises ModelUnsupported, naming what cannot be served."""
    theirs = read_their_config(folder)
    heads = int(theirs.num_attention_heads)
    hidden = int(theirs.hidden_size)
    return ModelConfig(
        model_type=str(theirs.model_type),
        vocab_size=int(theirs.vocab_size),
        hidden_size=hidden,
        intermediate_size=int(getattr(theirs, "intermediate_size", None) or 4 * hidden),
        layers=int(theirs.num_hidden_layers),
        heads=heads,
        kv_heads=int(getattr(theirs, "num_key_value_heads", None) or heads),
        head_dim=int(getattr(theirs, "head_dim", None) or hidden // heads),
        norm_eps=1e-5,  # theirs is inside their code, as is the rotation
        max_positions=int(theirs.max_position_embeddings),
        rope=RopeConfig(theta=10000.0),
        tied_embeddings=bool(getattr(theirs, "tie_word_embeddings", False)),
        attention_bias=False,
        mlp_bias=False,
        dtype=str(getattr(theirs, "dtype", None) or "float32").removeprefix("torch."),
        eos_ids=read_eos_ids(folder, theirs.eos_token_id),
    )


def read_their_config(folder: Path) -> Any:
    """`transformers`' config object of a model that can be bridged. Raises ModelUnsupported."""
    path = folder / "config.json"
    kind = read_json(path).get("model_type")
    try:
        theirs = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as cause:
        why = str(cause).partition("\n")[0][:150]  # the whole may list every model there is
        raise _refused(path, f"model_type is {kind!r}, and transformers does not read it ({why})") from cause
    if reason := _why_not(theirs):
        raise _refused(path, f"model_type is {kind!r}, and {reason}")
    return theirs


def _why_not(theirs: Any) -> str | None:
    """Why this model cannot run over pages; None if it may."""
    if type(theirs) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return "transformers has no causal language model of it"
    if theirs.is_encoder_decoder:
        return "it has an encoder"
    if not MODEL_FOR_CAUSAL_LM_MAPPING[type(theirs)]._supports_attention_backend:
        return "its attention, with ALiBi or another oddity, cannot be exchanged for one over pages"
    if getattr(theirs, "quantization_config", None):
        return "its checkpoint is quantized"
    if kinds := set(getattr(theirs, "layer_types", None) or ()) - LAYER_KINDS:
        return f"it has layers of {', '.join(sorted(kinds))}"
    if stateful := _rope_types(theirs) & STATEFUL_ROPE:
        return f"its rope_type {min(stateful)!r} depends on the longest sequence of the batch"
    lacks = [name for name in ("hidden_size", "max_position_embeddings") if getattr(theirs, name, None) is None]
    return f"its config has no {lacks[0]}" if lacks else None


def _rope_types(theirs: Any) -> set[str]:
    """One for all layers, or one for each kind of layer."""
    rope = getattr(theirs, "rope_parameters", None) or {}
    return {str(each.get("rope_type")) for each in (rope, *rope.values()) if isinstance(each, dict)}


def _refused(path: Path, problem: str) -> ModelUnsupported:
    served = f"this engine runs {', '.join(sorted(NATIVE))}, and those of transformers' causal models whose attention"
    return ModelUnsupported(path, problem, f"{served} can be exchanged")
