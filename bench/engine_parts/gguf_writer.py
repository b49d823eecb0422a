"""A Llama folder of safetensors as GGUF, in one type of llama.cpp's. Runs in the peers' environment.

PEERS_PYTHON -m bench.engine_parts.gguf_writer FOLDER FILE.gguf bf16|q8_0|q4_0

Every matrix is of that type, embedding and head too; norms stay float32. Without a vocabulary: token ids in and out.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf  # type: ignore[import-not-found,unused-ignore]  # in the peers' environment alone
import numpy as np
from numpy.typing import NDArray

TYPES = {
    "bf16": gguf.GGMLQuantizationType.BF16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
}
OUTSIDE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
IN_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}

Floats = NDArray[np.float32]


def convert(folder: Path, file: Path, kind: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    if config["model_type"] != "llama":
        raise SystemExit(f"{folder} holds a {config['model_type']} model; only llama is converted")
    writer = gguf.GGUFWriter(file, "llama")
    _describe(writer, config)
    for name, tensor in _tensors(folder):
        _add(writer, _gguf_name(name), _rotated(name, tensor, config), TYPES[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _describe(writer: Any, config: dict[str, Any]) -> None:
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])


def _add(writer: Any, name: str, tensor: Floats, kind: gguf.GGMLQuantizationType) -> None:
    if tensor.ndim == 1:
        writer.add_tensor(name, tensor)
    else:
        writer.add_tensor(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)


def _gguf_name(name: str) -> str:
    if name in OUTSIDE:
        return OUTSIDE[name]
    layer, _, rest = name.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{IN_LAYER[rest.removesuffix('.weight')]}.weight"


def _rotated(name: str, tensor: Floats, config: dict[str, Any]) -> Floats:
    """llama.cpp rotates neighbours, [2i, 2i + 1]; transformers halves, [i, i + half]: rows of Q and K change places."""
    if ".q_proj." not in name and ".k_proj." not in name:
        return tensor
    heads = config["num_attention_heads" if ".q_proj." in name else "num_key_value_heads"]
    halves = tensor.reshape(heads, 2, -1, tensor.shape[-1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(tensor.shape))


def _tensors(folder: Path) -> Iterator[tuple[str, Floats]]:
    """Every tensor of a safetensors folder, read by the format itself: numpy has no bfloat16 to read it with."""
    for file in sorted(folder.glob("*.safetensors")):
        raw = np.memmap(file, np.uint8, "r")
        header_end = 8 + int(raw[:8].view("<u8")[0])
        header = json.loads(raw[8:header_end].tobytes())
        header.pop("__metadata__", None)
        for name, entry in header.items():
            assert entry["dtype"] == "BF16", f"{file}: {name} is {entry['dtype']}, not BF16"
            begin, end = (header_end + offset for offset in entry["data_offsets"])
            wide = np.frombuffer(raw[begin:end].tobytes(), "<u2").astype(np.uint32) << 16
            yield name, wide.view(np.float32).reshape(entry["shape"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("kind", choices=TYPES)
    args = parser.parse_args()
    convert(args.folder, args.file, args.kind)


if __name__ == "__main__":
    main()
