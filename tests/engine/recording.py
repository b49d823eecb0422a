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
from penstock_engine import EngineConfig, graphs
from penstock_engine.kernel_choice import choose_kernels
from penstock_engine.layers import gpu
from penstock_engine.models import CausalLM
from penstock_kernels import activations, attention, fused_qkv, rows
from torch import Tensor

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
