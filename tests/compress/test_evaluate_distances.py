"""Divergences over the whole vocabulary, by two engines, against `transformers`."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from penstock_compress.distances import Scored, Side, compare, distances, read, windows
from penstock_compress.errors import EvaluationFailed
from penstock_compress.figures import Compared
from penstock_engine import Engine, EngineConfig

from tests.engine.tiny import VOCABULARY, TinyModel, make_tiny, random_prompt

ROWS = 4 * VOCABULARY  # bytes that one distribution takes
TEXTS = [Scored(random_prompt(length, seed), start) for seed, (length, start) in enumerate([(60, 1), (2, 1), (33, 30)])]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return make_tiny(tmp_path_factory.mktemp("other") / "model", "llama", intermediate_size=80)


def engine_of(model: TinyModel, **others: object) -> Engine:
    return Engine.from_folder(model.folder, EngineConfig(dtype="float32", **others))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def engines(tiny: TinyModel, other: TinyModel) -> tuple[Engine, Engine]:
    """With few pages and a small step: chunks, preemption and eviction are part of it."""
    small = {"kv_pages": 6, "max_running": 4, "token_budget": 24}
    return engine_of(tiny, **small), engine_of(other, **small)


@pytest.fixture(autouse=True)
def _one_thread(engines: tuple[Engine, Engine]) -> None:
    """After the engines, whose kernels start threads of their own."""
    torch.set_num_threads(1)


def reference(model: TinyModel, against: TinyModel, text: Scored) -> Compared:
    tokens = torch.tensor(text.tokens[text.start :])
    own, base = (each.logprobs(text.tokens).double()[text.start - 1 : -1] for each in (model, against))
    surprises = [-rows.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).numpy() for rows in (own, base)]
    same = (own.argmax(-1) == base.argmax(-1)).double().numpy()
    return Compared((base.exp() * (base - own)).sum(-1).numpy(), same, *surprises)


@pytest.mark.parametrize("rows", [1, 7, 60, 1000])
def test_figures_are_the_references_in_windows_of_any_size(
    tiny: TinyModel, other: TinyModel, engines: tuple[Engine, Engine], rows: int
) -> None:
    against, candidate = engines
    told = Counter[str]()
    sides = [Side(candidate), Side(against, alone=True), Side(candidate, alone=True)]
    found = compare(against, sides, TEXTS, lambda: told.update(["span"]), kept_bytes=rows * ROWS)

    for at, text in enumerate(TEXTS):
        for side, model in ((0, other), (1, tiny), (2, other)):
            right, got = reference(model, tiny, text), found[side][at]
            for field in ("divergence", "same_top", "surprise", "surprise_against"):
                np.testing.assert_allclose(getattr(got, field), getattr(right, field), atol=2e-4, err_msg=field)
    assert np.concatenate([each.divergence for each in found[0]]).min() > 0.01
    assert np.concatenate([each.divergence for each in found[1]]).max() < 1e-6
    spans = sum(map(len, windows(TEXTS, min(rows, 63))))
    assert told["span"] == spans * (1 + len(sides))


@given(
    texts=st.lists(st.tuples(st.integers(2, 40), st.integers(1, 39)), min_size=1, max_size=8),
    most=st.integers(1, 50),
)
def test_windows_hold_every_scored_position_once(texts: list[tuple[int, int]], most: int) -> None:
    given_texts = [Scored([0] * length, min(start, length - 1)) for length, start in texts]
    cut = list(windows(given_texts, most))
    for window in cut:
        rows = [row for span in window for row in range(span.row, span.row + span.rows)]
        assert rows == list(range(len(rows)))
        assert len(rows) <= most
    positions = [(span.text, at) for window in cut for span in window for at in range(span.start, span.end)]
    assert positions == [
        (at, place) for at, text in enumerate(given_texts) for place in range(text.start, len(text[0]))
    ]


def test_alone_each_span_has_the_engine_to_itself(tiny: TinyModel) -> None:
    """And finds nothing of what others computed."""
    engine = engine_of(tiny, max_running=4, token_budget=512)
    together: list[int] = []
    alone: list[int] = []
    for side, requests in ((Side(engine), together), (Side(engine, alone=True), alone)):
        step, before = engine.step, engine.stats().tokens_cached

        def watched(step: Any = step, requests: list[int] = requests) -> Any:
            output = step()
            requests.append(output.counts.requests)
            return output

        engine.step = watched  # type: ignore[method-assign]
        (window,) = windows(TEXTS, 1000)
        read(side, TEXTS, window, lambda _span, _row, _logprobs: None, lambda: None)
        engine.step = step  # type: ignore[method-assign]
        assert engine.stats().tokens_cached == before
    assert max(together) == len(TEXTS)
    assert max(alone) == 1


def test_what_cannot_come_weighs_nothing() -> None:
    against = torch.tensor([[0.5, 0.5, 0.0]]).log()
    own = torch.tensor([[0.25, 0.25, 0.5]]).log()
    divergence, same, surprise, surprise_against = distances(own, against, torch.tensor([1]))[0].tolist()
    assert divergence == pytest.approx(np.log(2))
    assert same == 0
    assert (surprise, surprise_against) == (pytest.approx(-np.log(0.25)), pytest.approx(-np.log(0.5)))


def test_a_model_that_gives_no_distribution_is_told(engines: tuple[Engine, Engine]) -> None:
    against, candidate = engines
    forward = candidate._runner._model

    def spoiled(batch: Any) -> Any:
        logits = forward(batch)
        logits[0, 0] = torch.nan
        return logits

    candidate._runner._model = spoiled  # type: ignore[assignment]
    try:
        with pytest.raises(EvaluationFailed, match="finite"):
            compare(against, [Side(candidate)], TEXTS, lambda: None)
    finally:
        candidate._runner._model = forward
        while candidate.has_work:
            candidate.step()


def test_an_engines_memory_holds_one_window(engines: tuple[Engine, Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest tensor of distributions is the window, whatever the text."""
    made: list[tuple[int, ...]] = []
    empty = torch.empty

    def watched(*sizes: int, **others: Any) -> Any:
        made.append(sizes)
        return empty(*sizes, **others)

    monkeypatch.setattr(torch, "empty", watched)
    compare(engines[0], [Side(engines[1])], TEXTS, lambda: None, kept_bytes=5 * ROWS)
    assert [sizes for sizes in made if sizes[-1:] == (VOCABULARY,)] == [(5, VOCABULARY)]
