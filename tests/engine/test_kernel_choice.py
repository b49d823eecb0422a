"""Which kernels run, and what is said of it."""

import re
import subprocess
import sys
from typing import Any

import pytest
import torch
from penstock_engine import Engine, EngineConfig, InvalidConfig, Request
from penstock_engine.layers.prepack import PrepackedLinear
from penstock_kernels.cpu import support

from tests.engine.driving import greedy, run_all
from tests.engine.tiny import TinyModel, compiled_only, random_prompt

LAYERS = 3


@compiled_only
class TestWhereTheyRun:
    def test_they_run_unless_another_is_asked_for(self, llama: TinyModel) -> None:
        chosen = Engine.from_folder(llama.folder, EngineConfig()).kernels
        assert chosen["layers"] == "compiled for AVX-512"
        assert (chosen["Plain"], chosen["PoolAttention"]) == (str(4 * LAYERS + 1), str(LAYERS))
        assert "as asked for" in Engine.from_folder(llama.folder, EngineConfig(kernels="torch")).kernels["layers"]

    @pytest.mark.parametrize(
        ("settings", "why"),
        [({"page_size": 8}, "no multiple of 16"), ({"dtype": "float16"}, "the dtype is float16")],
    )
    def test_what_they_do_not_take_is_named(self, llama: TinyModel, settings: dict[str, Any], why: str) -> None:
        assert why in Engine.from_folder(llama.folder, EngineConfig(**settings)).kernels["layers"]
        with pytest.raises(InvalidConfig, match=why) as caught:
            Engine.from_folder(llama.folder, EngineConfig(kernels="compiled", **settings))
        assert caught.value.field == "kernels"

    def test_a_bridged_model_keeps_its_own_code(self, models: Any) -> None:
        model = models("gpt2", num_key_value_heads=4)
        assert "transformers' own code" in Engine.from_folder(model.folder, EngineConfig()).kernels["layers"]

    @pytest.mark.parametrize("quantization", ["int8", "int4", "fp8"])
    def test_quantized_products_stay_near_the_others(self, models: Any, quantization: Any) -> None:
        """Their own rounding is what keeps them apart: int8 changes a logprob by hundredths, the others by tenths."""
        model = models("llama", hidden_size=128, intermediate_size=256, initializer_range=0.08)
        prompts = [random_prompt(40, seed=seed) for seed in range(4)]

        def scores(quantization: Any) -> torch.Tensor:
            config = EngineConfig(dtype="float32", quantization=quantization)
            engine = Engine.from_folder(model.folder, config)
            return torch.tensor([engine.score(prompt) for prompt in prompts])

        apart = (scores(quantization) - scores(None)).abs().mean().item()
        assert 1e-4 < apart < {"int8": 0.1, "int4": 1.0, "fp8": 0.4}[quantization]

    def test_what_is_quantized_is_told(self, models: Any) -> None:
        model = models("llama", hidden_size=128, intermediate_size=256)
        chosen = Engine.from_folder(model.folder, EngineConfig(quantization="int4")).kernels
        assert (chosen["Int4"], chosen["Int8"]) == (str(4 * LAYERS), "1")  # the head has 8 bits
        assert re.fullmatch(r"Int4 \d+, Int8 \d+", chosen["bytes held"])
        chosen = Engine.from_folder(model.folder, EngineConfig(quantization="fp8")).kernels
        assert (chosen["Float8"], chosen["Int8"]) == (str(4 * LAYERS), "1")

    def test_a_router_is_not_quantized(self, models: Any) -> None:
        model = models("mixtral", num_local_experts=4)
        chosen = Engine.from_folder(model.folder, EngineConfig(quantization="int8")).kernels
        assert chosen["Plain"] == str(LAYERS)

    def test_repeated_steps_run_as_programs(self, llama: TinyModel) -> None:
        engine = Engine.from_folder(llama.folder, EngineConfig())
        run_all(engine, [Request("a", random_prompt(5, seed=1), greedy(9))])
        (stack,) = engine._runner._model.model.layers  # type: ignore[union-attr, misc]
        assert [shape[0] for shape in stack._programs] == [1]


class TestWhereTheyDoNot:
    @pytest.fixture(autouse=True)
    def _no_instructions(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(support, "lacking", lambda: "this processor has no avx512_bf16")

    @pytest.mark.parametrize(("dtype", "prepacked"), [("bfloat16", 4 * LAYERS + 1), ("float32", 0)])
    def test_torch_runs_and_it_is_said_why(self, llama: TinyModel, dtype: Any, prepacked: int) -> None:
        engine = Engine.from_folder(llama.folder, EngineConfig(dtype=dtype))
        assert engine.kernels == {
            "layers": "torch (this processor has no avx512_bf16)",
            "prepacked": str(prepacked),
            "scores": "torch",
        }
        packed = [each for each in engine._runner._model.modules() if isinstance(each, PrepackedLinear)]
        assert len(packed) == prepacked
        assert len(run_all(engine, [Request("a", [1, 2, 3], greedy(5))]).tokens("a")) == 5

    def test_quantization_is_refused(self, llama: TinyModel) -> None:
        with pytest.raises(InvalidConfig, match="no avx512_bf16") as caught:
            Engine.from_folder(llama.folder, EngineConfig(quantization="int8"))
        assert caught.value.field == "quantization"


def test_a_machine_without_the_instructions_is_told_so(tmp_path: Any) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("flags\t\t: fpu avx512f avx512bw avx512vl avx512_vnni\n")
    assert support.lacking(info) == "this processor has no avx512_bf16, avx512vbmi"
    assert "does not tell" in support.lacking(tmp_path / "none")


def test_a_machine_without_numba_runs_torch(llama: TinyModel) -> None:
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "from penstock_engine import Engine, EngineConfig\n"
        f"print(Engine.from_folder({str(llama.folder)!r}, EngineConfig()).kernels['layers'])\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.startswith("torch (the package numba is not installed)")


@compiled_only
def test_a_warm_engine_keeps_to_one_thread_and_compiles_no_more(llama: TinyModel) -> None:
    """A pool of threads started on the way would have small torch operations wait for each other, milliseconds each."""
    code = (
        "import torch\n"
        "from penstock_engine import Engine, EngineConfig\n"
        f"engine = Engine.from_folder({str(llama.folder)!r}, EngineConfig(threads=1))\n"
        "engine.warm_up()\n"
        "from penstock_kernels.cpu.likeliest import find_likeliest\n"
        "from penstock_kernels.cpu.workspace import run_program\n"
        "engine.score([1, 2, 3])\n"
        "print(torch.get_num_threads(), len(run_program.signatures), len(find_likeliest.signatures))\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told == "1 1 1\n"  # and warming up compiled what runs programs, and what scores
