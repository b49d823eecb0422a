"""The engine on a CUDA device says what `transformers` says there."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from penstock_engine import Engine, EngineConfig, InvalidConfig, Request
from penstock_engine.config import Kernels, KVDType, Quantization
from penstock_engine.profiling import CudaMemory, kv_memory
from penstock_engine.sizing import KVShape

from tests.engine.driving import Run, greedy, parity, run_all
from tests.engine.parity_table import ARCHITECTURES
from tests.engine.rounded import rounded
from tests.engine.tiny import TinyModel, make_tiny, random_prompt

SERVED = ("llama", "mistral-window", "mixtral", "phi3-partial-rotary", "qwen2", "qwen3", "gemma", "gemma2", "gemma3")
LAYERS = {"compiled": "compiled by Triton", "torch": "torch (as asked for)"}
WIDE: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "initializer_range": 0.08}
FORMATS: list[tuple[Quantization | None, KVDType]] = [
    ("int4", "auto"),
    ("int8", "auto"),
    ("fp8", "auto"),
    (None, "int8"),
    (None, "fp8"),
    ("int4", "fp8"),
]
PART = 4 << 30  # bytes
FLIPPED = 0.1  # of a log probability: a step of e4m3 is an eighth of one among hundreds of numbers


@pytest.fixture
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TinyModel]:
    def make(name: str) -> TinyModel:
        kind, overrides = ARCHITECTURES[name]
        return make_tiny(tmp_path_factory.mktemp(kind), kind, **overrides)

    return make


def mixed_requests() -> list[Request]:
    lengths = (1, 15, 16, 17, 33, 70)
    return [Request(f"r{n}", random_prompt(n, seed=n), greedy(40)) for n in lengths]


@pytest.mark.parametrize("kernels", LAYERS)
@pytest.mark.parametrize("name", SERVED)
def test_greedy_tokens_equal_the_reference(model: Callable[[str], TinyModel], name: str, kernels: Kernels) -> None:
    made = model(name)
    torch.backends.cuda.matmul.allow_tf32 = False
    config = EngineConfig(device="cuda", dtype="float32", token_budget=16, max_running=5, kv_pages=16, kernels=kernels)
    engine = Engine.from_folder(made.folder, config)
    assert engine.kernels["layers"] == LAYERS[kernels]
    requests = mixed_requests()
    found = parity(made, requests, run_all(engine, requests))
    assert found.tokens == len(requests) * 40
    assert found.wrong == 0
    assert found.worst_logprob < 1e-3


@pytest.mark.parametrize("kernels", LAYERS)
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2"])
def test_bfloat16_stays_among_the_references_best(
    model: Callable[[str], TinyModel], name: str, kernels: Kernels
) -> None:
    made = model(name)
    config = EngineConfig(device="cuda", dtype="bfloat16", kv_pages=64, kernels=kernels)
    requests = mixed_requests()
    run = run_all(Engine.from_folder(made.folder, config), requests)
    for request in requests:
        tokens = run.tokens(request.id)
        rows = made.logprobs([*request.prompt_ids, *tokens])[len(request.prompt_ids) - 1 : -1]
        first_wrong = next((at for at, token in enumerate(tokens) if token != int(rows[at].argmax())), None)
        if first_wrong is not None:
            assert tokens[first_wrong] in rows[first_wrong].topk(5).indices.tolist()


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize(("quantization", "kv_dtype"), FORMATS)
def test_rounded_formats_say_what_a_rounded_reference_says(
    tmp_path: Path, kind: str, quantization: Quantization | None, kv_dtype: KVDType
) -> None:
    """In chunks, with cached and copied pages, mixed with decoding; a number on the edge of two roundings may flip."""
    made = rounded(make_tiny(tmp_path, kind, **WIDE), quantization, kv_dtype)
    torch.backends.cuda.matmul.allow_tf32 = False
    config = EngineConfig(
        device="cuda",
        dtype="float32",
        token_budget=16,
        max_running=5,
        kv_pages=24,
        quantization=quantization,
        kv_dtype=kv_dtype,
    )
    engine = Engine.from_folder(made.folder, config)
    requests = mixed_requests()
    found = parity(made, requests, run_all(engine, requests))
    assert found.tokens == len(requests) * 40
    assert found.wrong <= found.tokens // 20
    assert found.worst_logprob < FLIPPED


@pytest.mark.parametrize(("quantization", "kv_dtype"), FORMATS)
def test_rounded_formats_in_bfloat16_stay_near(
    tmp_path: Path, quantization: Quantization | None, kv_dtype: KVDType
) -> None:
    """Log probabilities of given tokens move by little more than the rounding alone moves them in float32."""
    made = make_tiny(tmp_path, "llama", **WIDE)
    prompts = [random_prompt(60, seed=seed) for seed in range(8)]

    def scores(reference: TinyModel) -> torch.Tensor:
        return torch.cat([reference.logprobs(prompt)[range(59), prompt[1:]] for prompt in prompts])

    def ours(**formats: Any) -> torch.Tensor:
        config = EngineConfig(device="cuda", dtype="bfloat16", kv_pages=64, **formats)
        engine = Engine.from_folder(made.folder, config)
        return torch.tensor([each for prompt in prompts for each in engine.score(prompt)])

    exact = scores(made)
    by_rounding = (scores(rounded(made, quantization, kv_dtype)) - exact).abs().mean()
    by_bfloat16 = (ours() - exact).abs().mean()
    assert (ours(quantization=quantization, kv_dtype=kv_dtype) - exact).abs().mean() < 1.5 * (by_rounding + by_bfloat16)


class Part(CudaMemory):
    """So much of a GPU as this process may take: other tests run beside it, and all of it would be theirs too."""

    def free(self) -> int:
        torch.cuda.synchronize()
        return PART - torch.cuda.memory_reserved()


@pytest.fixture
def part_of_the_memory() -> Iterator[None]:
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(PART / torch.cuda.get_device_properties(0).total_memory)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.usefixtures("part_of_the_memory")
def test_what_the_largest_steps_leave_can_be_taken(tmp_path: Path) -> None:
    """All of it is, as a pool would take it; then the engine runs as much as it may at once."""
    config = EngineConfig(
        device="cuda", dtype="bfloat16", max_running=32, token_budget=2048, kv_pages=1024, memory_share=1.0
    )
    engine = Engine.from_folder(make_tiny(tmp_path, "llama", **WIDE).folder, config)
    model, shape = engine._runner._model, KVShape.of(engine.model_config, config, torch.bfloat16)
    memory = Part(torch.device("cuda"))
    free = memory.free()
    found = kv_memory(model, config, shape, max_model_len=256, dtype=torch.bfloat16, memory=memory)
    assert 0.7 * free < found < free
    held = torch.zeros(found, dtype=torch.uint8, device="cuda")
    engine.warm_up()
    run = run_all(engine, [Request(f"r{n}", random_prompt(200, seed=n), greedy(8)) for n in range(64)])
    assert run.failed == []
    assert not held[-1]


def test_a_context_that_does_not_fit_is_refused_with_the_figures(tmp_path: Path) -> None:
    config = EngineConfig(device="cuda", max_model_len=256, memory_share=1e-9)
    with pytest.raises(InvalidConfig, match="K and V of 256 tokens take 0 MiB, and for them there are 0:") as caught:
        Engine.from_folder(make_tiny(tmp_path, "llama").folder, config)
    assert caught.value.field == "max_model_len"


def test_the_lane_of_fixed_bits_holds_where_it_is_not_refused(model: Callable[[str], TinyModel]) -> None:
    """cuBLAS may choose another order of sums for another number of rows: the trial at start then says so."""
    made = model("llama")
    config = EngineConfig(device="cuda", dtype="bfloat16", kv_pages=64, deterministic=True)
    try:
        engines = [Engine.from_folder(made.folder, config) for _ in range(2)]
    except InvalidConfig as refused:
        if refused.field != "deterministic":
            raise
        pytest.skip(str(refused))
    last = mixed_requests()[-1]
    assert _told(run_all(engines[0], [last])) == _told(run_all(engines[1], mixed_requests()))


def _told(run: Run) -> list[tuple[int, float | None]]:
    return [(delta.token_id, delta.logprob) for delta in run.deltas["r70"]]
