"""The engine on a CUDA device says what `transformers` says there."""

from collections.abc import Callable

import pytest
import torch
from penstock_engine import Engine, EngineConfig, Request

from tests.engine.driving import greedy, parity, run_all
from tests.engine.tiny import TinyModel, make_tiny, random_prompt


@pytest.fixture
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TinyModel]:
    return lambda kind: make_tiny(tmp_path_factory.mktemp(kind), kind)


def mixed_requests() -> list[Request]:
    lengths = (1, 15, 16, 17, 33, 70)
    return [Request(f"r{n}", random_prompt(n, seed=n), greedy(40)) for n in lengths]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_greedy_tokens_equal_the_reference(model: Callable[[str], TinyModel], kind: str) -> None:
    made = model(kind)
    torch.backends.cuda.matmul.allow_tf32 = False
    config = EngineConfig(device="cuda", dtype="float32", token_budget=16, max_running=5, kv_pages=16)
    engine = Engine.from_folder(made.folder, config)
    requests = mixed_requests()
    found = parity(made, requests, run_all(engine, requests))
    assert found.tokens == len(requests) * 40
    assert found.wrong == 0
    assert found.worst_logprob < 1e-3


def test_bfloat16_stays_among_the_references_best(model: Callable[[str], TinyModel]) -> None:
    made = model("llama")
    engine = Engine.from_folder(made.folder, EngineConfig(device="cuda", dtype="bfloat16", kv_pages=64))
    requests = mixed_requests()
    run = run_all(engine, requests)
    for request in requests:
        tokens = run.tokens(request.id)
        rows = made.logprobs([*request.prompt_ids, *tokens])[len(request.prompt_ids) - 1 : -1]
        first_wrong = next((at for at, token in enumerate(tokens) if token != int(rows[at].argmax())), None)
        if first_wrong is not None:
            assert tokens[first_wrong] in rows[first_wrong].topk(5).indices.tolist()
