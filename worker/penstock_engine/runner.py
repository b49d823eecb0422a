"""The only part that touches the device: a scheduled batch in, chosen tokens out."""

from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from penstock_engine.batch import ScheduleBatch, StepSamples
from penstock_engine.forward_batch import build_forward_batch, lay_out
from penstock_engine.graphs import NO_GRAPHS, DecodeGraphs, GraphPlan
from penstock_engine.kv_pool import KVPool
from penstock_engine.masks import MaskBuilder, Masks
from penstock_engine.models import CausalLM
from penstock_engine.page_allocator import NULL_PAGE
from penstock_engine.pending import Answer, Delivery, Pending
from penstock_engine.request import Generation, Request
from penstock_engine.sampler import Chosen, Sampler
from penstock_engine.scoring import Scorer, read_scores
from penstock_engine.staging import send
from penstock_engine.tables import RowTables


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
        graphs: GraphPlan = NO_GRAPHS,
        kernels: Literal["auto", "torch", "compiled"] = "auto",
    ) -> None:
        self._model = model
        self._pads = model.pads
        self._pool = pool
        self._tables = tables
        self._device = device
        self._dtype = dtype
        self._deterministic = deterministic
        self._sampler = Sampler(tables, device)
        self._scorer = Scorer(device, kernels)
        self.graphs = DecodeGraphs(model, pool, graphs, self._sampler.latest)
        self._masks = MaskBuilder(model.config.vocab_size)
        self._stream = _stream_on(device)  # what goes to the host
        self.forwards = 0  # that came to their end

    @property
    def told(self) -> dict[str, str]:
        """Which kernels run beside the model's own, and which graphs there are."""
        return {**self.graphs.told, "scores": self._scorer.kernel}

    def run(self, batch: ScheduleBatch) -> StepSamples:
        """Launch `batch`, and wait for what comes of it."""
        return self.launch(batch).result()

    @torch.inference_mode()
    def launch(self, batch: ScheduleBatch) -> Pending:
        """Run every scheduled token through the model; nothing here waits for the device.

        Tokens that the step before has chosen are read on the device. Grammars' masks are begun here too, unless they
        depend on such tokens.
        """
        self._pool.copy(batch.copies)
        masks = None if batch.awaits else self._masks.begin(batch.sampled)  # awaited tokens have their say in them
        logits = self.forward(batch, self._tables)
        return Pending(partial(self._choose, batch, logits, masks), self._count)

    @torch.inference_mode()
    def _choose(self, batch: ScheduleBatch, logits: Tensor, masks: Future[Masks] | None) -> Answer:
        """Choose the next token where a run reaches its end, and score what is to be scored."""
        chosen = self._draw(batch, logits, masks) if batch.draws else None
        scores = self._scorer.score(logits[len(batch.ends) :], batch.scored)
        tensors = [*scores, chosen.packed] if chosen else scores
        return Answer(Delivery(tensors, self._stream), partial(_read, batch, chosen))

    def _draw(self, batch: ScheduleBatch, logits: Tensor, masks: Future[Masks] | None) -> Chosen:
        sampled = batch.sampled
        masks = masks or self._masks.begin(sampled)
        own = self._with_twins(logits, batch) if batch.twins else logits[: len(batch.ends)]
        return self._sampler.choose(own, sampled, masks.result() if masks else None)

    def _with_twins(self, logits: Tensor, batch: ScheduleBatch) -> Tensor:
        (rows,) = send([np.array(batch.logit_rows)], self._device)
        return logits.index_select(0, rows)

    def _count(self) -> None:
        self.forwards += 1

    @torch.inference_mode()
    def forward(self, batch: ScheduleBatch, tables: RowTables) -> Tensor:
        """The model's answer to `batch`, whose rows are those of `tables`: logits [padded rows, vocabulary]."""
        layout = lay_out(batch, tables)
        if self.graphs.takes(layout):
            return self.graphs.logits(layout)
        forward = build_forward_batch(
            layout,
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
        batch = ScheduleBatch(1)
        batch.add(nobody, 1)
        self.forward(batch, tables).amax().cpu()  # waits for it, and so for all that was launched before
        self._pool.zero([NULL_PAGE])

    @torch.inference_mode()
    def resize_pool(self, pages: int) -> None:
        """So many pages from now on, all of them zero, the null page included. Raises InvalidConfig."""
        self._pool.resize(pages)
        self.graphs.capture_again()

    @torch.inference_mode()
    def copy(self, pairs: list[tuple[int, int]]) -> None:
        self._pool.copy(pairs)

    @torch.inference_mode()
    def scrub(self, pages: list[int]) -> None:
        self._pool.zero(pages)


def _read(batch: ScheduleBatch, chosen: Chosen | None, tensors: list[Tensor]) -> StepSamples:
    """What `_choose` sent, once it is on the host: scores, then what was chosen."""
    if chosen is None:
        return batch.undrawn(read_scores(tensors))
    samples = chosen.told(tensors.pop())
    return replace(samples, scores=read_scores(tensors)) if tensors else samples


def _stream_on(device: torch.device) -> torch.cuda.Stream | None:
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]  # torch's gap
