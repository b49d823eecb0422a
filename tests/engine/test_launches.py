"""Launching a step, and choosing its tokens, asks the device for nothing: the host waits where the result is read."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from penstock_engine import Engine, EngineConfig, Request, SamplingParams, drawing, sampler
from penstock_engine.batch import ScheduleBatch
from penstock_engine.forward_batch import Layout
from penstock_engine.pending import Pending
from penstock_kernels import sampling
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.engine.driving import greedy, run_all
from tests.engine.recording import use_gpu_layers, use_references
from tests.engine.tiny import TinyModel, random_prompt

ASKING = ("item", "tolist", "cpu", "nonzero", "__bool__", "__int__", "__float__", "__index__")
ASKING_OPERATORS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "bincount", "unique")
OURS = ("penstock_engine", "penstock_kernels.sampling")


class Waited(Exception):
    """The host was told a number of the device's."""


class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch gives it no types
    """What torch does below Python."""

    def __torch_dispatch__(self, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        if function.__name__.split(".")[0] in ASKING_OPERATORS:
            raise Waited(str(function))
        return function(*given, **(named or {}))


@contextmanager
def nobody_waits() -> Iterator[None]:
    """Raises Waited in code of ours that a GPU would keep waiting: for an answer, or for what it is sent to arrive."""

    def guarded(owner: Any, name: str, asks: Callable[..., bool]) -> None:
        right = getattr(owner, name)

        def ask(*given: Any, **named: Any) -> Any:
            caller = sys._getframe(1).f_globals["__name__"]
            if caller.startswith(OURS) and asks(*given, **named):
                raise Waited(f"{caller} calls {name}")
            return right(*given, **named)

        patch.setattr(owner, name, ask)

    with pytest.MonkeyPatch.context() as patch, Operators():  # type: ignore[no-untyped-call]  # as above
        for name in ASKING:
            guarded(Tensor, name, lambda *given, **named: True)
        guarded(torch, "tensor", lambda *given, **named: "device" in named)
        guarded(Tensor, "to", lambda *given, **named: isinstance(given[1], torch.device) and not named)
        yield


@pytest.fixture
def engine(models: Any, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """As on a GPU, but that draws are those of the definition, and attention is that of the references."""
    use_gpu_layers(monkeypatch)
    use_references(monkeypatch)
    monkeypatch.setattr(sampler, "drawing_on", lambda device: sampling.sample)
    model: TinyModel = models("llama", num_hidden_layers=2)
    engine = Engine.from_folder(model.folder, EngineConfig(dtype="float32", max_running=4, token_budget=16, kv_pages=9))
    engine.warm_up()
    return engine


@pytest.fixture
def requests() -> list[Request]:
    drawn = SamplingParams(
        temperature=0.8, top_k=9, top_p=0.9, min_p=0.01, seed=3, max_tokens=9, ignore_eos=True, logprobs=2
    )
    return [
        Request("drawn", random_prompt(20, seed=1), drawn),
        Request("greedy", random_prompt(7, seed=2), greedy(9)),
        Request("penalised", random_prompt(4, seed=3), greedy(9, frequency_penalty=0.5)),
        Request("biased", random_prompt(5, seed=4), replace(drawn, n=2, logit_bias=((3, 2.0),), min_tokens=4)),
        Request("scored", random_prompt(6, seed=5), greedy(9, prompt_logprobs=1)),
        Request("copied", [*random_prompt(7, seed=2)[:5], 9, 9], greedy(9)),
    ]


@pytest.fixture
def guarded(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Nobody waits in a step but for its result; whether each was recorded."""
    recorded: list[bool] = []
    runner, launch, logits = engine._runner, engine._runner.launch, engine._runner.graphs.logits

    def launched(batch: ScheduleBatch) -> Pending:
        recorded.append(False)
        with nobody_waits():
            pending = launch(batch)
            pending.choose()
        return pending

    def replayed(layout: Layout) -> Tensor:
        recorded[-1] = True
        return logits(layout)

    monkeypatch.setattr(runner, "launch", launched)
    monkeypatch.setattr(runner.graphs, "logits", replayed)
    return recorded


def test_neither_prefill_nor_decoding_waits(engine: Engine, requests: list[Request], guarded: list[bool]) -> None:
    for request in requests:
        engine.submit(request)
    outputs = []
    while engine.has_work:
        outputs.append(engine.step())
    assert [failure for output in outputs for failure in output.failed] == []
    assert sum(len(output.deltas) for output in outputs) == 9 * 7
    assert set(guarded) == {False, True}
    assert engine.stats().prefix_hits > 0  # pages were copied


def test_a_draw_that_asks_is_noticed(engine: Engine, requests: list[Request], guarded: list[bool]) -> None:
    engine._runner._sampler._draw = drawing.draw
    run = run_all(engine, requests[:1])
    assert "Waited" in run.failed[0].message
