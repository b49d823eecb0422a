"""`penstock plan`: its arithmetic by hand, against what the engine really holds, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from penstock_compress import Recipe, compress
from penstock_compress.errors import InvalidPlan, SourceUnusable
from penstock_compress.planning import GPUS, Estimate, Plan, Workload, take_inventory
from penstock_compress.planning import inventory as counted
from penstock_compress.planning.cli import plan
from penstock_compress.planning.estimate import CONTEXT, GRAPHS
from penstock_engine.config import EngineConfig
from penstock_engine.layers import gpu_linear
from penstock_engine.profiling import GRAPH_BYTES, MARGIN
from penstock_kernels.quant_formats import Int4Codes
from penstock_kernels.quant_int4 import pack_int4

from tests.engine.tiny import TinyModel

H200 = GPUS["H200"]
LLAMA_8B = {
    "model_type": "llama",
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
    "eos_token_id": 1,
}
MIXTRAL = LLAMA_8B | {"model_type": "mixtral", "vocab_size": 32_000, "num_local_experts": 8, "num_experts_per_tok": 2}
LLAMA_NUMBERS = 8_030_261_248  # as Llama 3.1 8B is published
MIXTRAL_NUMBERS = 46_702_792_704  # Mixtral 8x7B

Folder = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """A folder with a config.json and nothing else."""

    def make(config: dict[str, Any]) -> Path:
        (tmp_path / "config.json").write_text(json.dumps(config))
        return tmp_path

    return make


def estimates(source: Path, *, gpu: str = "H200", **load: Any) -> dict[tuple[str, str], Estimate]:
    chosen = {"context": 8192, "concurrency": 64, "output": 512} | load
    made = Plan(take_inventory(source), GPUS[gpu], Workload(**chosen)).estimates()
    return {(each.weights, each.kv): each for each in made}


def angles(config: dict[str, Any]) -> int:
    """Bytes of the rotary tables: a sine and a cosine of each position's pairs."""
    inventory = config["hidden_size"] // config["num_attention_heads"]
    return int(config["max_position_embeddings"] * inventory)


def test_counts_the_weights_of_a_published_model(folder: Folder) -> None:
    held = take_inventory(folder(LLAMA_8B)).weights(None)
    assert 0 <= held - 2 * LLAMA_NUMBERS <= 4 * angles(LLAMA_8B)


def test_counts_experts_and_what_a_token_reads_of_them(folder: Folder) -> None:
    inventory = take_inventory(folder(MIXTRAL))
    assert 0 <= inventory.weights(None) - 2 * MIXTRAL_NUMBERS <= 4 * angles(MIXTRAL)
    read = inventory.read_by_step(None, 1) / 2
    assert read == pytest.approx(
        12.88e9 - 32_000 * 4096, rel=0.002
    )  # its authors count 12.9 billion, embeddings included
    assert inventory.read_by_step(None, 64) == pytest.approx(inventory.read_by_step(None, 100_000), rel=1e-6)


def test_kv_is_what_heads_and_layers_make_of_it(folder: Folder) -> None:
    found = estimates(folder(LLAMA_8B))
    assert found["bfloat16", "bfloat16"].kv_bytes_for_token == 32 * 2 * 8 * 128 * 2
    assert found["bfloat16", "int8"].kv_bytes_for_token == 32 * 2 * 8 * (128 + 2)  # and a scale in 16 bits


def test_places_are_what_is_left_in_pages(folder: Folder) -> None:
    found = estimates(folder(LLAMA_8B))["bfloat16", "bfloat16"]
    left = H200.memory - CONTEXT - found.weight_bytes - found.step_bytes - GRAPHS * GRAPH_BYTES - MARGIN
    assert found.room == int(left * EngineConfig().memory_share)
    pages = found.room // (16 * found.kv_bytes_for_token) - 1
    assert (found.places, found.longest) == (pages // 512, min(8192, pages // 64 * 16))


def test_a_gpu_without_e4m3_has_no_plan_in_fp8(folder: Folder) -> None:
    assert {weights for weights, _ in estimates(folder(LLAMA_8B), gpu="A100-80GB")} == {"bfloat16", "int8", "int4"}


def test_a_model_that_does_not_fit_has_no_speed(folder: Folder) -> None:
    found = estimates(folder(MIXTRAL), gpu="A100-80GB")
    assert not found["bfloat16", "bfloat16"].fits
    assert found["bfloat16", "bfloat16"].tokens_per_second is None
    assert found["int4", "bfloat16"].fits


def test_decoding_alone_is_bound_by_bandwidth(folder: Folder) -> None:
    """The published 165 tokens/s of an 8B in bf16 on an H100 are 74% of what its bandwidth allows."""
    found = estimates(folder(LLAMA_8B), gpu="H100", context=8192, output=8191, concurrency=1, bandwidth_share=0.74)
    assert found["bfloat16", "bfloat16"].tokens_per_second == pytest.approx(165 * 0.9, rel=0.1)  # context is read too


def test_smaller_weights_never_slow_decoding(folder: Folder) -> None:
    found = estimates(folder(LLAMA_8B), context=4096, output=4000, concurrency=8)
    speeds = [found[weights, "bfloat16"].tokens_per_second or 0.0 for weights in ("bfloat16", "int8", "int4")]
    assert speeds == sorted(speeds)
    assert speeds[2] > 2 * speeds[0]


def test_price_is_shared_by_what_an_hour_makes(folder: Folder) -> None:
    found = estimates(folder(LLAMA_8B), price=3.6)["int8", "int8"]
    assert found.tokens_per_second is not None
    assert found.price_of_output == pytest.approx(1000.0 / found.tokens_per_second)  # 0.001 a second
    assert found.price_of_all == pytest.approx((found.price_of_output or 0) / 16)


def test_rounds_as_the_engine_does() -> None:
    assert (set(counted.KEPT), counted.GROUPS) == (gpu_linear.KEPT, gpu_linear.GROUPS)


@pytest.mark.parametrize(("rows", "columns"), [(96, 256), (300, 192)])
def test_int4_is_what_the_kernels_layout_holds(rows: int, columns: int) -> None:
    group = next(size for size in counted.GROUPS if columns % size == 0)
    codes = torch.zeros(rows, columns, dtype=torch.uint8)
    scales = torch.ones(rows, columns // group)
    packed = pack_int4(Int4Codes(codes, scales, torch.full_like(scales, 8, dtype=torch.uint8)))
    assert counted.Matrix(rows, columns).bytes("int4", 2) == packed.words.nbytes + packed.scales.nbytes


def test_a_compressed_checkpoint_is_taken_as_it_is(tiny: TinyModel, target: Path) -> None:
    compress(tiny.folder, target, Recipe("int8-weights"), None)
    found = estimates(target, context=64, output=16, concurrency=2)
    assert {weights for weights, _ in found} == {"as stored"}
    stored, whole = found["as stored", "float32"], estimates(tiny.folder, context=64, output=16, concurrency=2)
    assert stored.weight_bytes < 0.7 * whole["float32", "float32"].weight_bytes


def test_a_model_of_transformers_own_layers_is_not_rounded(tmp_path: Path) -> None:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=199, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    )
    model = GPTNeoXForCausalLM(config)
    config.save_pretrained(tmp_path)
    found = estimates(tmp_path, context=64, output=16, concurrency=2)
    assert len(found) == 1
    (only,) = found.values()
    assert only.weight_bytes == pytest.approx(sum(weight.nbytes for weight in model.parameters()), rel=0.01)


@pytest.mark.parametrize(
    ("load", "field"),
    [
        ({"context": 512, "output": 512}, "context"),
        ({"context": 9000}, "context"),
        ({"concurrency": 0}, "concurrency"),
        ({"price": 0.0}, "price"),
        ({"bandwidth_share": 1.5}, "bandwidth_share"),
    ],
)
def test_a_load_that_cannot_be_names_the_field(folder: Folder, load: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidPlan) as refused:
        estimates(folder(LLAMA_8B), **load)
    assert refused.value.field == field


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceUnusable, match=r"config\.json"):
        take_inventory(tmp_path)


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(plan, [str(each) for each in arguments])
    return result.exit_code, result.output


def test_the_command_prints_a_table(folder: Folder) -> None:
    code, out = run(folder(LLAMA_8B), "--gpu", "h200", "--context", "8k", "--price", 3.5)
    assert code == 0
    for told in ("H200, 151 GB: 64 requests of 8192 tokens", "16.1 GB", "131 kB", "1M output", "estimates at 70%"):
        assert told in out


def test_the_command_prints_json(folder: Folder) -> None:
    code, out = run(folder(LLAMA_8B), "--gpu", "H200", "--json")
    told = json.loads(out)
    assert code == 0
    assert told["load"]["context"] == 8192
    assert [each["weights"] for each in told["plan"]][::2] == ["bfloat16", "int8", "fp8", "int4"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(("--gpu", "H2000"), "must be one of B200, H200"), (("--gpu", "H200", "--context", "8 k"), "write 8192 or 8k")],
)
def test_the_command_says_what_is_wrong(folder: Folder, arguments: tuple[str, ...], says: str) -> None:
    code, out = run(folder(LLAMA_8B), *arguments)
    assert code != 0
    assert says in out
