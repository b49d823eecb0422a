"""Models of the bench's shapes, of random weights, as Hugging Face folders that every engine can read.

python -m bench.engine_parts.shapes NAME FOLDER
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

HEAD_DIM = 64
SPREAD = 0.02  # standard deviation of the weights


@dataclass(frozen=True)
class Shape:
    """A Llama whose embedding and head are two matrices. It never ends of itself: it has no end of sequence."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int = 32_000
    positions: int = 4096

    @property
    def config(self) -> dict[str, object]:
        """What config.json says."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "dtype": "bfloat16",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": HEAD_DIM,
            "hidden_act": "silu",
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.positions,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": False,
            "bos_token_id": None,
            "eos_token_id": None,
        }

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Every tensor's shape, by its name in a checkpoint."""
        hidden, query, key = self.hidden, self.heads * HEAD_DIM, self.kv_heads * HEAD_DIM
        layer = {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (query, hidden),
            "self_attn.k_proj": (key, hidden),
            "self_attn.v_proj": (key, hidden),
            "self_attn.o_proj": (hidden, query),
            "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (self.intermediate, hidden),
            "mlp.up_proj": (self.intermediate, hidden),
            "mlp.down_proj": (hidden, self.intermediate),
        }
        outside = {"model.embed_tokens": (self.vocabulary, hidden), "model.norm": (hidden,)}
        inside = {f"model.layers.{at}.{name}": size for at in range(self.layers) for name, size in layer.items()}
        everything = {**outside, **inside, "lm_head": (self.vocabulary, hidden)}
        return {f"{name}.weight": size for name, size in everything.items()}


SHAPES = {
    "llama-0.5b": Shape(hidden=896, intermediate=4864, layers=24, heads=14, kv_heads=2),
    # A tenth of it, for what takes thousands of steps: a ragged trace one request at a time.
    "llama-40m": Shape(hidden=512, intermediate=1536, layers=8, heads=8, kv_heads=2),
    # As deep as llama-0.5b with next to nothing to compute: what is left is the calls.
    "llama-0.5b-hollow": Shape(hidden=64, intermediate=64, layers=24, heads=1, kv_heads=1, vocabulary=64),
}


def write(shape: Shape, folder: Path) -> None:
    """Write `shape` to `folder`, all at once or not at all."""
    import torch
    from safetensors.torch import save_file

    draw = torch.Generator().manual_seed(0)

    def tensor(size: tuple[int, ...]) -> torch.Tensor:
        if len(size) == 1:
            return torch.ones(size, dtype=torch.bfloat16)
        return torch.empty(size).normal_(0, SPREAD, generator=draw).bfloat16()

    unfinished = folder.with_name(f"{folder.name}.unfinished")
    unfinished.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor(size) for name, size in shape.tensors().items()}
    save_file(tensors, unfinished / "model.safetensors", metadata={"format": "pt"})
    (unfinished / "config.json").write_text(json.dumps(shape.config, indent=2) + "\n")
    unfinished.rename(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    write(SHAPES[args.name], args.folder)


if __name__ == "__main__":
    main()
