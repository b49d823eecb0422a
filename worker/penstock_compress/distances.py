"""How far models' next-token distributions lie apart, over the whole vocabulary, by the engine's own prefill.

Of all distributions those of one window are in memory at a time: the model that others are held against runs a window
of tokens, then each other model the same, and what it says is compared row by row as it is computed.

    texts     [ prompt | scored ............ ] [ prompt | scored .. ] [ prompt | scored ...
    spans              [ ........ ][ ....... ]          [ ..... ]               [ ....
    windows            [ window 0 ][ window 1 .................. ]

What comes before a span is found in the engine's prefix cache where it is still there, and computed again where not.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple

import numpy as np
import torch
from penstock_engine import Engine, Request
from torch import Tensor

from penstock_compress.errors import EvaluationFailed
from penstock_compress.figures import Compared

KEPT_BYTES: Final = 256 * 2**20
FIGURES: Final = 4  # the fields of Compared
Told = Callable[[], None]
"""Called whenever a span has been read."""


class Scored(NamedTuple):
    """Tokens of which those from `start` on are scored."""

    tokens: Sequence[int]
    start: int


class Span(NamedTuple):
    """A part of a text: positions `start` to `end`, whose rows begin at `row` of the window."""

    text: int
    start: int
    end: int
    row: int

    @property
    def rows(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Side:
    """A model to compare. `alone`: it runs one span at a time, so that its batches are others."""

    engine: Engine
    alone: bool = False

    @property
    def namespace(self) -> str:
        """Nothing that other batches computed is found in the prefix cache."""
        return "alone" if self.alone else "together"


def compare(
    against: Engine, sides: Sequence[Side], texts: Sequence[Scored], told: Told, *, kept_bytes: int = KEPT_BYTES
) -> list[list[Compared]]:
    """For each side, how each text is under it beside `against`. Memory: `kept_bytes` beside the engines.

    `told` is called once for each span and model. Raises EvaluationFailed, EngineError.
    """
    vocabulary = against.model_config.vocab_size
    most = window_rows(vocabulary, kept_bytes)
    kept = torch.empty(min(most, sum(len(text.tokens) - text.start for text in texts)), vocabulary)
    kept = kept.to(against.config.device)
    parts: list[list[list[Tensor]]] = [[[] for _ in texts] for _ in sides]
    for window in windows(texts, len(kept)):
        read(Side(against), texts, window, partial(_keep, kept), told)
        for side, found in zip(sides, parts, strict=True):
            for span, figures in _compare_window(side, texts, window, kept, told):
                found[span.text].append(figures)
    return [[_joined(pieces) for pieces in found] for found in parts]


def window_rows(vocabulary: int, kept_bytes: int = KEPT_BYTES) -> int:
    """Distributions that `kept_bytes` hold."""
    return max(1, kept_bytes // (4 * vocabulary))


def windows(texts: Sequence[Scored], most: int) -> Iterator[list[Span]]:
    """All scored positions, at most `most` in a window."""
    window: list[Span] = []
    rows = 0
    for at, text in enumerate(texts):
        start = text.start
        while start < len(text.tokens):
            end = min(len(text.tokens), start + most - rows)
            window.append(Span(at, start, end, rows))
            rows += end - start
            start = end
            if rows == most:
                yield window
                window, rows = [], 0
    if window:
        yield window


Take = Callable[[Span, int, Tensor], None]
"""Told a span, a row of the window, and log probabilities [rows, vocabulary] from there on."""


def read(side: Side, texts: Sequence[Scored], window: Sequence[Span], take: Take, told: Told) -> None:
    """Have the spans of a window read. Raises EvaluationFailed, EngineError."""
    requests = [_request(side, texts, span, take) for span in window]
    for batch in [[each] for each in reversed(requests)] if side.alone else [requests]:
        _run(side.engine, batch, told)


def _request(side: Side, texts: Sequence[Scored], span: Span, take: Take) -> Request:
    def reader(position: int, logprobs: Tensor) -> None:
        take(span, span.row + position - span.start, logprobs)

    return Request(
        f"{span.text}.{span.start}",
        list(texts[span.text].tokens[: span.end]),
        scored_from=span.start,
        namespace=side.namespace,
        reader=reader,
    )


def _run(engine: Engine, requests: Iterable[Request], told: Told) -> None:
    for request in requests:
        engine.submit(request)
    while engine.has_work:
        output = engine.step()
        if output.failed:
            raise EvaluationFailed(f"the engine failed on {output.failed[0].request_id}: {output.failed[0].message}")
        for _ in output.prompt_logprobs:
            told()


def _keep(kept: Tensor, _span: Span, row: int, logprobs: Tensor) -> None:
    kept[row : row + len(logprobs)] = logprobs


def _compare_window(
    side: Side, texts: Sequence[Scored], window: Sequence[Span], kept: Tensor, told: Told
) -> list[tuple[Span, Tensor]]:
    """Each span's figures [rows, FIGURES] (float64)."""
    figures = torch.empty(len(kept), FIGURES, dtype=torch.float64, device=kept.device)
    targets = torch.tensor([token for span in window for token in texts[span.text].tokens[span.start : span.end]])
    targets = targets.to(kept.device)

    def take(_span: Span, row: int, logprobs: Tensor) -> None:
        rows = slice(row, row + len(logprobs))
        figures[rows] = distances(logprobs.to(kept.device), kept[rows], targets[rows])

    read(side, texts, window, take, told)
    found = figures[: len(targets)].cpu()
    if not found.isfinite().all():
        raise EvaluationFailed("a model gives no finite distribution for some of the text: its weights are damaged")
    return [(span, found[span.row : span.row + span.rows]) for span in window]


def distances(logprobs: Tensor, against: Tensor, targets: Tensor) -> Tensor:
    """The fields of `Compared` as [rows, FIGURES] (float64), of log probabilities [rows, vocabulary] and tokens [rows].

    What rounding leaves of a divergence below 0 is 0.
    """
    terms = against.exp() * (against - logprobs)
    terms.masked_fill_(against == -torch.inf, 0)  # what cannot come has no weight
    divergence = terms.sum(-1, dtype=torch.float64).clamp_(min=0)
    same_top = (logprobs.argmax(-1) == against.argmax(-1)).double()
    wanted = targets.unsqueeze(-1)
    surprises = [-each.gather(-1, wanted).squeeze(-1).double() for each in (logprobs, against)]
    return torch.stack([divergence, same_top, *surprises], -1)


def _joined(pieces: Sequence[Tensor]) -> Compared:
    return Compared(*np.ascontiguousarray(torch.cat(list(pieces)).numpy().T))
