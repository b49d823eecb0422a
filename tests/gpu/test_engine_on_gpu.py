"""The engine on a CUDA device says what `transformers` says there."""

from collections.abc import Callable

import pytest
import torch
from penstock_engine import Engine, EngineConfig, InvalidConfig, Request
from penstock_engine.config import Kernels

from tests.engine.driving import Run, greedy, parity, run_all
from tests.engine.parity_table import ARCHITECTURES
from tests.engine.tiny import TinyModel, make_tiny, random_prompt

SERVED = ("llama", "mistral-window", "mixtral", "phi3-partial-rotary", "qwen2", "qwen3", "gemma", "gemma2", "gemma3")
LAYERS = {"compiled": "compiled by Triton", "torch": "torch (as asked for)"}


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
