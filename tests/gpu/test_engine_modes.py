"""However a step is run on a GPU (launch by launch or as a captured graph, in turn or overlapped), it says the same.

In float32 without TF32, where the order of sums alone differs: a graph pads its batch, and cuBLAS sums another number
of rows in another order. The tokens are those of `transformers` on the same GPU.
"""

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
import torch
from penstock_engine import Engine, EngineConfig, InvalidConfig, Request
from penstock_engine.config import Kernels

from tests.engine.driving import Run, greedy, run_all
from tests.engine.parity_table import ARCHITECTURES
from tests.engine.tiny import TinyModel, make_tiny, random_prompt

NAMES = ("llama", "qwen3", "mistral-window", "gemma2")
MODES = [{"graphs": graphs, "overlap": overlap} for graphs, overlap in product(("auto", "off"), ("on", "off"))]
LENGTHS = (1, 15, 16, 17, 33, 70, 9, 64)
OUTPUT = 32
LOGPROBS_APART = 1e-4  # float32's own noise between two orders of summation is about 1e-5 here


def requests() -> list[Request]:
    """Of unequal output too, so that batches shrink through several sizes of graph."""
    return [
        Request(f"r{length}", random_prompt(length, seed=length), greedy(OUTPUT - at))
        for at, length in enumerate(LENGTHS)
    ]


def engine_of(folder: Path, **options: object) -> Engine:
    """A budget of 16 cuts prompts into chunks; its pages make running requests preempt one another."""
    fixed = {"device": "cuda", "dtype": "float32", "token_budget": 16, "max_running": 6, "kv_pages": 20}
    engine = Engine.from_folder(folder, EngineConfig(**{**fixed, **options}))  # type: ignore[arg-type]  # by name
    engine.warm_up()
    return engine


def told(run: Run) -> dict[str, list[int]]:
    return {name: run.tokens(name) for name in run.deltas}


def logprobs_apart(one: Run, other: Run) -> float:
    """The furthest that the log probability of a token is from the same one's in the other run."""
    pairs = [
        (left.logprob or 0.0, right.logprob or 0.0)
        for name, deltas in one.deltas.items()
        for left, right in zip(deltas, other.deltas[name], strict=True)
    ]
    return max(abs(left - right) for left, right in pairs)


@pytest.fixture(autouse=True)
def whole_float32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    kind, overrides = ARCHITECTURES[request.param]
    return make_tiny(tmp_path_factory.mktemp(request.param), kind, **overrides)


@torch.inference_mode()
def said_by_transformers(model: TinyModel, request: Request) -> list[int]:
    """Greedy, on the GPU, each token by a pass over all before it: no cache whose layout could be at fault."""
    reference = model.reference.to("cuda")
    ids = list(request.prompt_ids)
    for _ in range(request.sampling.max_tokens or 0):
        logits = reference(torch.tensor([ids], device="cuda"), use_cache=False).logits
        ids.append(int(logits[0, -1].argmax()))
    return ids[len(request.prompt_ids) :]


def test_every_mode_says_what_transformers_says_here(model: TinyModel) -> None:
    expected = {request.id: said_by_transformers(model, request) for request in requests()}
    model.reference.to("cpu")
    runs = [run_all(engine_of(model.folder, **mode), requests()) for mode in MODES]
    for mode, run in zip(MODES, runs, strict=True):
        assert told(run) == expected, mode
    assert max(logprobs_apart(runs[-1], run) for run in runs) < LOGPROBS_APART


def test_kernels_and_torch_say_the_same(model: TinyModel) -> None:
    """The Triton layers beside the same model run by torch, in this process."""
    names: tuple[Kernels, ...] = ("compiled", "torch")
    eager = [run_all(engine_of(model.folder, kernels=kernels, graphs="off"), requests()) for kernels in names]
    assert told(eager[0]) == told(eager[1])
    assert logprobs_apart(*eager) < LOGPROBS_APART


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_second_run_repeats_the_first_to_the_bit(model: TinyModel, dtype: str) -> None:
    """The same requests, steps and batches: nothing that a graph or an overlapped step left behind shows."""
    engine = engine_of(model.folder, dtype=dtype, prefix_cache=False)
    first, second = (run_all(engine, requests()) for _ in range(2))
    assert first.deltas == second.deltas


def test_the_lane_of_fixed_bits_holds_in_every_mode(model: TinyModel) -> None:
    """Alone and beside others, whichever way steps are run; refused where this GPU cannot promise it."""
    try:
        engines = [engine_of(model.folder, dtype="bfloat16", deterministic=True, **mode) for mode in MODES]
    except InvalidConfig as refused:
        if refused.field != "deterministic":
            raise
        pytest.skip(str(refused))
    alone = {each.id: run_all(engines[-1], [each]).deltas[each.id] for each in requests()}
    for engine in engines:
        assert run_all(engine, requests()).deltas == alone
