"""What the runner asks of a model, native or bridged."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType

from torch import Tensor, nn

from penstock_engine.forward_batch import ForwardBatch
from penstock_engine.model_config import ModelConfig


class CausalLM(nn.Module, ABC):
    """Token ids to logits."""

    config: ModelConfig
    pads = True  # each new number of rows costs its products something: see `forward_batch`
    unrecordable = "its layers run in torch"  # why no CUDA graph can hold its steps; empty if one can
    kernels: Mapping[str, str] = MappingProxyType({"layers": "torch"})  # what runs, by kind of layer

    @abstractmethod
    def forward(self, batch: ForwardBatch) -> Tensor:
        """Logits in float32 of the tokens to be sampled after, [padded sampled, vocabulary]."""
