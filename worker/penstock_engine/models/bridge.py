"""Causal LMs of `transformers` run with their own code, all but the attention, which is ours, over the paged pool.

    forward(batch) ── one row of all the batch's tokens ──> their layers
                                                              │ mask: ours, which says how far a token looks back
                                                              └ attention: ours, stores K and V, reads the pages

`transformers` calls both by name, without a way to hand the step to them, hence the context variable. Whatever of a
model these two would not honour (a bias, an odd mask, an unknown argument) is refused by name, at load: `check`
runs the model over pages and as its authors wrote it, and compares.
"""

from contextvars import ContextVar
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from penstock_kernels import store_kv
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM

from penstock_engine.errors import ModelCorrupt
from penstock_engine.forward_batch import ForwardBatch
from penstock_engine.layers.attention import Scores, paged_attention
from penstock_engine.model_config import ModelConfig
from penstock_engine.models.bridge_config import read_their_config
from penstock_engine.models.causal_lm import CausalLM

ATTENTION = "penstock_paged"
STEP: ContextVar[ForwardBatch] = ContextVar("step")
# Arguments that change nothing about what attention computes here: its dropout is off, its window is in the mask.
HARMLESS = {"dropout", "is_causal", "position_ids", "position_embeddings", "sliding_window", "use_cache"}


class NotServed(RuntimeError):
    """The model asks of its attention what ours does not do."""


@dataclass(frozen=True, slots=True)
class Visible:
    """Stands where a mask tensor would: each token sees `window` tokens up to itself (None: all)."""

    window: int | None


def paged_mask(*, mask_function: Any, config: Any, **_: Any) -> Visible:
    """Ask the model's mask what the last tokens of a context see; only causal and sliding windows have an answer."""
    last = int(config.max_position_embeddings) - 1
    places = torch.arange(last + 2)
    widths = []
    for token in (last, last - 1):  # two of them, or the end of a chunk would pass for a window
        seen = mask_function(0, 0, torch.tensor(token), places)
        width = int(seen.sum())
        if not torch.equal(seen, (places <= token) & (places > token - width)):
            raise NotServed("its mask is neither causal nor a sliding window")
        widths.append(None if width == token + 1 else width)
    if widths[0] != widths[1]:
        raise NotServed("its mask depends on where in the context a token is")
    return Visible(widths[0])


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention as `transformers` calls it; q, k, v are [1, heads, tokens, head_dim], the answer [1, tokens, ...]."""
    odd = sorted(name for name, given in others.items() if name not in HARMLESS and given is not None and given)
    if odd or others.get("is_causal") is False:
        raise NotServed(f"its attention is called with {', '.join(odd) or 'is_causal=False'}")
    if not isinstance(attention_mask, Visible) or key.shape != value.shape:
        raise NotServed("its attention has a mask of its own, or keys and values of different shapes")
    step = STEP.get()
    kv = torch.cat((key[0], value[0])).transpose(0, 1)  # [tokens, 2 * kv_heads, head_dim]
    store_kv(step.pool.slots(module.layer_idx), step.slots, kv[: len(step.slots)])
    q = query[0].transpose(0, 1)
    scores = Scores(q.shape[-1] ** -0.5 if scaling is None else scaling, attention_mask.window, softcap)
    out = paged_attention(q, step.pool, module.layer_idx, step.attention, kv_heads=key.shape[1], scores=scores)
    return out.view(1, *q.shape), None


class BridgedLM(CausalLM):
    """A model of `transformers` as the runner wants it."""

    def __init__(self, config: ModelConfig, theirs: Any) -> None:
        super().__init__()
        self.config, self.theirs = config, theirs
        self._keeps = "logits_to_keep" in signature(theirs.forward).parameters

    def forward(self, batch: ForwardBatch) -> Tensor:
        ids = batch.input_ids.unsqueeze(0)
        # A mask of ones, or tokens of several requests in one row would be taken for packed sequences.
        given = {"position_ids": batch.positions.unsqueeze(0), "attention_mask": torch.ones_like(ids)}
        wanted = batch.sample_at
        if self._keeps and wanted is not None:
            given["logits_to_keep"] = wanted
        token = STEP.set(batch)
        try:
            logits: Tensor = self.theirs(input_ids=ids, use_cache=False, **given).logits[0].float()
        finally:
            STEP.reset(token)
        return logits if self._keeps or wanted is None else logits.index_select(0, wanted)


def open_bridged(folder: Path, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> BridgedLM:
    """Load the folder's weights into `transformers`' model, with our attention. Raises ModelLoadError."""
    AttentionInterface.register(ATTENTION, attend)
    AttentionMaskInterface.register(ATTENTION, paged_mask)
    theirs = read_their_config(folder)
    load: Any = AutoModelForCausalLM.from_pretrained
    options = {"use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    try:
        model, info = load(folder, config=theirs, dtype=dtype, attn_implementation="eager", **options)
    except Exception as cause:
        raise ModelCorrupt(folder, f"transformers cannot load it ({cause})", "copy the folder again") from cause
    for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if info[kind]:
            names = ", ".join(sorted(map(str, info[kind]))[:3])
            raise ModelCorrupt(folder, f"{kind.replace('_', ' ')}: {names}", "copy the folder again")
    return BridgedLM(config, model.to(device).eval())
