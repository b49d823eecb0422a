"""An engine with the layers of a GPU, and its recordings, where there is no GPU.

A recording runs again what was recorded, over the same buffers. The kernels are Triton's, interpreted, or the torch
references, which refuse what lies beyond a bucket.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import penstock_engine.engine as engine_module
import penstock_kernels
import pytest
import torch
from penstock_engine import EngineConfig, Request, graphs
from penstock_engine.batch import ScheduleBatch
from penstock_engine.forward_batch import Layout, build_forward_batch, lay_out
from penstock_engine.kernel_choice import choose_kernels
from penstock_engine.layers import gpu
from penstock_engine.models import CausalLM
from penstock_engine.request import Generation
from penstock_engine.runner import ModelRunner
from penstock_engine.tables import RowTables
from penstock_kernels import activations, attention, fused_qkv, rows
from torch import Tensor

from tests.engine.tiny import random_prompt

REFERENCES = {
    "decode_attention": attention.paged_attention,
    "extend_attention": attention.paged_attention,
    "norm_rotary_store": fused_qkv.norm_rotary_store,
    "rms_norm": penstock_kernels.rms_norm,
    "rms_norm_residual": penstock_kernels.rms_norm_residual,
    "take_rows": rows.take_rows,
    "GATES": {"silu": activations.silu_mul, "gelu_pytorch_tanh": activations.gelu_mul},
}


class Again:
    """A recording without a graph."""

    def __init__(self, run: Callable[[], Tensor]) -> None:
        self._run = run
        self.answer = run().clone()

    def replay(self) -> None:
        self.answer.copy_(self._run())


class Reruns:
    """Records a run by keeping what runs it."""

    def __init__(self, device: torch.device) -> None:
        pass

    def record(self, run: Callable[[], Tensor]) -> Again:
        return Again(run)


def use_gpu_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines choose as they would on an H200, for a model that lies on the CPU."""

    def chosen(model: CausalLM, config: EngineConfig, **given: Any) -> None:
        choose_kernels(model, replace(config, device="cuda"), **given)

    monkeypatch.setattr(engine_module, "choose_kernels", chosen)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setitem(graphs.RECORDERS, "cpu", Reruns)


def use_references(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, reference in REFERENCES.items():
        monkeypatch.setattr(gpu, name, reference)


class Trial:
    """A decoding step of three requests, in a bucket of four; all of the pool that they do not see is poison."""

    PAGE = 16
    LENGTHS = (20, 7, 33)

    def __init__(self, runner: ModelRunner) -> None:
        self.runner, tables = runner, runner._tables
        self.layout = self._layout(tables)
        self.own_slots = set(self.layout.places.slots.tolist())
        self._memory = self.runner._pool._moved[0]
        self._clean = torch.randn(self._memory.shape, generator=torch.Generator().manual_seed(4))
        pages = zip(self.layout.rows.tolist(), self.LENGTHS, strict=True)
        seen = {
            int(tables.pages[row, at // self.PAGE]) * self.PAGE + at % self.PAGE
            for row, length in pages
            for at in range(length)
        }
        slots = self._clean.flatten(1, 2)
        slots[:, [slot for slot in range(slots.shape[1]) if slot not in seen]] = torch.inf

    @torch.inference_mode()
    def replayed(self) -> Tensor:
        """Logits of the three, from a recording."""
        self._memory.copy_(self._clean)
        assert self.runner.graphs.takes(self.layout)
        return self.runner.graphs.logits(self.layout).clone()

    @torch.inference_mode()
    def launched(self) -> Tensor:
        """Logits of the three, kernel by kernel."""
        self._memory.copy_(self._clean)
        runner = self.runner
        batch = build_forward_batch(
            self.layout,
            runner._tables,
            runner._pool,
            torch.device("cpu"),
            torch.float32,
            latest=runner._sampler.latest,
            padded=False,
        )
        logits: Tensor = runner._model(batch)
        return logits

    def written(self) -> set[int]:
        """The slots that are not what they were."""
        pairs = zip(self._memory.flatten(1, 2).unbind(1), self._clean.flatten(1, 2).unbind(1), strict=True)
        return {slot for slot, (now, before) in enumerate(pairs) if not torch.equal(now, before)}

    def is_right(self) -> bool:
        return torch.allclose(self.replayed(), self.launched(), atol=1e-4) and self._writes_where_it_may()

    def _writes_where_it_may(self) -> bool:
        self.replayed()
        return self.written() == {0, *self.own_slots}

    def _layout(self, tables: RowTables) -> Layout:
        batch, pages = ScheduleBatch(3), iter((5, 2, 9, 1, 7, 3))
        for at, length in enumerate(self.LENGTHS):
            ids = random_prompt(length, seed=at)
            nobody = Generation(
                Request(str(at), ids), 0, at, ids, prompt_len=length, limit=99, stop_ids=frozenset(), seed=0
            )
            nobody.pages = [next(pages) for _ in range(-(-length // self.PAGE))]
            nobody.computed_len = length - 1
            tables.admit(nobody)
            batch.add(nobody, 1)
        return lay_out(batch, tables)
