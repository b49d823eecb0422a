"""Between a step's launch and the reading of its result torch waits for the GPU nowhere: it is told to refuse."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from penstock_engine import Engine, EngineConfig, Request, SamplingParams
from penstock_engine.batch import ScheduleBatch
from penstock_engine.config import Overlap
from penstock_engine.pending import Pending

from tests.engine.driving import greedy
from tests.engine.tiny import make_tiny, random_prompt

DRAWN = SamplingParams(
    temperature=0.8, top_k=9, top_p=0.9, min_p=0.01, seed=3, max_tokens=9, ignore_eos=True, logprobs=2
)
BIASED = SamplingParams(seed=4, max_tokens=9, ignore_eos=True, logit_bias=((3, 2.0),), min_tokens=4, n=2)


@contextmanager
def nobody_waits() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def requests() -> list[Request]:
    return [
        Request("drawn", random_prompt(20, seed=1), DRAWN),
        Request("greedy", random_prompt(7, seed=2), greedy(9)),
        Request("biased", random_prompt(5, seed=4), BIASED),
        Request("penalised", random_prompt(4, seed=3), greedy(9, frequency_penalty=0.5)),
    ]


def told(engine: Engine) -> list[tuple[str, int, int]]:
    for request in requests():
        engine.submit(request)
    outputs = []
    while engine.has_work:
        outputs.append(engine.step())
    assert [failure for output in outputs for failure in output.failed] == []
    return [(each.request_id, each.choice, each.token_id) for output in outputs for each in output.deltas]


@pytest.mark.parametrize("overlap", ["on", "off"])
def test_no_launch_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overlap: Overlap) -> None:
    torch.use_deterministic_algorithms(False)  # as in service: some deterministic forms ask the host
    model = make_tiny(tmp_path, "llama")
    config = EngineConfig(device="cuda", dtype="float32", max_running=6, token_budget=16, kv_pages=20, overlap=overlap)
    engine = Engine.from_folder(model.folder, config)
    engine.warm_up()
    free = told(engine)  # compiles what is left to compile
    launch = engine._runner.launch

    def launched(batch: ScheduleBatch) -> Pending:
        with nobody_waits():
            pending = launch(batch)
            if not batch.awaits:
                pending.choose()
        return pending

    monkeypatch.setattr(engine._runner, "launch", launched)
    assert sorted(told(engine)) == sorted(free)


def test_the_refusal_is_one() -> None:
    with nobody_waits(), pytest.raises(RuntimeError):
        torch.ones(1, device="cuda").item()
