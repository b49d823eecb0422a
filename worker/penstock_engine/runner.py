"""The only part that touches the device: a scheduled batch in, chosen tokens out."""

from dataclasses import replace

import torch
from torch import Tensor

from penstock_engine.batch import ScheduleBatch, StepSamples
from penstock_engine.forward_batch import build_forward_batch, lay_out
from penstock_engine.kv_pool import KVPool
from penstock_engine.masks import MaskBuilder
from penstock_engine.models import CausalLM
from penstock_engine.page_allocator import NULL_PAGE
from penstock_engine.request import Generation, Request
from penstock_engine.sampler import Sampler
from penstock_engine.scoring import score
from penstock_engine.tables import RowTables

NOTHING_SAMPLED = StepSamples([], [], [], {})


class ModelRunner:
    """Runs the model over the pool."""

    def __init__(
        self,
        model: CausalLM,
        pool: KVPool,
        tables: RowTables,
        device: torch.device,
        dtype: torch.dtype,
        *,
        deterministic: bool = False,
    ) -> None:
        self._model = model
        self._pads = model.pads
        self._pool = pool
        self._tables = tables
        self._device = device
        self._dtype = dtype
        self._deterministic = deterministic
        self._sampler = Sampler(tables, device)
        self._masks = MaskBuilder(model.config.vocab_size)
        self.forwards = 0  # that came to their end

    @torch.inference_mode()
    def run(self, batch: ScheduleBatch) -> StepSamples:
        """Run every scheduled token through the model, and choose the next one where a run reaches its end."""
        self._pool.copy(batch.copies)
        sampled = batch.sampled
        masks = self._masks.begin(sampled)
        logits = self.forward(batch, self._tables)
        self.forwards += 1
        samples = NOTHING_SAMPLED
        ends = len(batch.ends)
        if sampled:
            allowed = masks.result() if masks else None
            own = logits[batch.logit_rows] if batch.twins else logits[:ends]
            chosen = self._sampler.choose(own, sampled, allowed)
            samples = chosen.told(chosen.packed.cpu())
        return replace(samples, scores=score(logits[ends:], batch.scored)) if batch.scored else samples

    @torch.inference_mode()
    def forward(self, batch: ScheduleBatch, tables: RowTables) -> Tensor:
        """The model's answer to `batch`, whose rows are those of `tables`: logits [padded rows, vocabulary]."""
        forward = build_forward_batch(
            lay_out(batch, tables),
            tables,
            self._pool,
            self._device,
            self._dtype,
            latest=self._sampler.latest,
            deterministic=self._deterministic,
            padded=self._pads,
        )
        logits: Tensor = self._model(forward)
        return logits

    @torch.inference_mode()
    def probe(self) -> None:
        """Run one token that is nobody's, on the null page: raises if the model runs nothing any more."""
        tables = RowTables(1, 1, self._pool.page_size)
        nobody = Generation(Request("", [0]), 0, 0, [0], prompt_len=1, limit=2, stop_ids=frozenset(), seed=0, row=0)
        batch = ScheduleBatch(1, [nobody], [1])
        self.forward(batch, tables)
        self._pool.zero([NULL_PAGE])

    @torch.inference_mode()
    def copy(self, pairs: list[tuple[int, int]]) -> None:
        self._pool.copy(pairs)

    @torch.inference_mode()
    def scrub(self, pages: list[int]) -> None:
        self._pool.zero(pages)
