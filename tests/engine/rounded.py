"""References that round where the engine says that it does: `transformers` in float32, with weights, activations, K and
V rounded by the formulas in torch."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from penstock_engine.config import KVDType, Quantization
from penstock_engine.layers.gpu_linear import round_int4
from penstock_engine.sizing import KV_DTYPES
from penstock_kernels import quant_matmul
from penstock_kernels.kv import dequantize_heads, quantize_heads
from penstock_kernels.quant_int4 import pack_int4, unpack_int4
from penstock_kernels.quant_matmul import ChannelWeight
from penstock_kernels.quant_rows import quantize_fp8, quantize_int8
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from tests.engine.tiny import TinyModel

CODES = {"int8": quantize_int8, "fp8": quantize_fp8}
PRODUCTS = {"int8": quant_matmul.w8a8_matmul, "fp8": quant_matmul.fp8_matmul}


def rounded(
    model: TinyModel,
    quantization: Quantization | None = None,
    kv_dtype: KVDType = "auto",
    *,
    loaded: torch.dtype = torch.float32,
) -> TinyModel:
    """`model`'s folder with another reference. `loaded` is what weights are read as before they are rounded."""
    reference = model.reference if quantization is None else _rounded_layers(model.reference, quantization, loaded)
    return RoundedContext(model.folder, reference, model.at_once, KV_DTYPES.get(kv_dtype))


@dataclass(frozen=True)
class RoundedContext(TinyModel):
    """A model whose reference keeps K and V in `kept_as`; None is as they are."""

    kept_as: torch.dtype | None = None

    def logprobs(self, tokens: Sequence[int]) -> Tensor:
        if self.kept_as is None:
            return super().logprobs(tokens)
        cache = RoundedCache(self.kept_as)
        with torch.inference_mode():
            logits: Tensor = self.reference(torch.tensor([list(tokens)]), past_key_values=cache).logits[0]
        return logits.log_softmax(-1)


class RoundedCache(DynamicCache):  # type: ignore[misc]  # transformers gives it no type
    """Keeps K and V as a pool of 8 bits does."""

    def __init__(self, kept_as: torch.dtype) -> None:
        super().__init__()
        self.kept_as = kept_as

    def update(self, key_states: Tensor, value_states: Tensor, *others: Any, **named: Any) -> tuple[Tensor, Tensor]:
        kept = (quantize_heads(each, self.kept_as, torch.float16) for each in (key_states, value_states))
        found: tuple[Tensor, Tensor] = super().update(*(dequantize_heads(*each) for each in kept), *others, **named)
        return found


class RoundedLayer(nn.Module):
    """A linear layer of `transformers` whose operands are rounded to 8 bits."""

    def __init__(self, linear: nn.Linear, quantization: Quantization) -> None:
        super().__init__()
        self.product, self.bias = PRODUCTS[quantization], linear.bias
        self.codes = ChannelWeight(*CODES[quantization](linear.weight.detach()))

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x[0], self.codes, self.bias)[None]


def _rounded_layers(reference: PreTrainedModel, quantization: Quantization, loaded: torch.dtype) -> PreTrainedModel:
    """A copy, all of whose linear layers but the head are rounded."""
    other = copy.deepcopy(reference)
    for parent in list(other.model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, _counterpart(child, quantization, loaded))
    return other


def _counterpart(linear: nn.Linear, quantization: Quantization, loaded: torch.dtype) -> nn.Module:
    if quantization != "int4":
        return RoundedLayer(linear, quantization)
    codes = round_int4(linear.weight.detach().to(loaded), min(128, linear.in_features))
    linear.weight = nn.Parameter(unpack_int4(pack_int4(codes)).dequantize(), requires_grad=False)
    return linear
