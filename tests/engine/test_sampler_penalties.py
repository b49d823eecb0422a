"""Bias and penalties mean what they mean in `transformers` and vLLM, on every road that a generation can take."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock_engine import Engine, EngineConfig, Request, SamplingParams
from penstock_engine.penalties import Adjustments
from penstock_engine.request import Generation
from penstock_engine.tables import RowTables
from scipy.stats import chisquare  # type: ignore[import-untyped]  # scipy ships no types
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor, SequenceBiasLogitsProcessor

from tests.engine.driving import greedy, run_all
from tests.engine.tiny import TinyModel, random_prompt

WIDTH = 11
TOKENS = st.lists(st.integers(0, WIDTH - 1), min_size=1, max_size=8)
PARAMETERS = st.fixed_dictionaries(
    {
        "repetition_penalty": st.sampled_from([1.0, 1.3, 0.7]),
        "presence_penalty": st.sampled_from([0.0, 0.5, -1.0]),
        "frequency_penalty": st.sampled_from([0.0, 0.25, -0.5]),
        "logit_bias": st.dictionaries(st.integers(0, WIDTH - 1), st.sampled_from([-100.0, -1.5, 2.0]), max_size=4).map(
            lambda bias: tuple(bias.items())
        ),
        "min_tokens": st.integers(0, 3),
        "stop_token_ids": st.lists(st.integers(0, WIDTH - 1), max_size=3, unique=True).map(tuple),
    }
)


def adjusted_alone(
    logits: torch.Tensor, prompt: list[int], output: list[int], sampling: SamplingParams
) -> torch.Tensor:
    """One row, by `transformers` where it has the processor and by the published formula where it has not."""
    steps: list[Any] = []
    if sampling.logit_bias:
        steps.append(SequenceBiasLogitsProcessor([[[token], value] for token, value in sampling.logit_bias]))
    if sampling.repetition_penalty != 1:
        steps.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    scores: torch.Tensor = LogitsProcessorList(steps)(torch.tensor([prompt + output]), logits.unsqueeze(0))[0].clone()
    for token in set(output):
        scores[token] -= sampling.presence_penalty + sampling.frequency_penalty * output.count(token)
    if len(output) < sampling.min_tokens:
        scores[list(sampling.stop_token_ids)] = -torch.inf
    return scores


def generation(prompt: list[int], output: list[int], sampling: SamplingParams) -> Generation:
    stops = frozenset(sampling.stop_token_ids)
    request = Request("x", prompt, sampling)
    return Generation(request, 0, 0, [*prompt, *output], len(prompt), 1000, stops, 0)


@settings(deadline=None, max_examples=60)
@given(
    members=st.lists(st.tuples(TOKENS, TOKENS.map(lambda ids: ids[1:]), PARAMETERS), min_size=1, max_size=5),
    turns=st.lists(st.tuples(st.integers(0, 4), st.booleans(), TOKENS), max_size=12),
    seed=st.integers(0, 1000),
)
def test_rows_are_adjusted_as_each_alone_would_be(members: Any, turns: Any, seed: int) -> None:
    """Batches of any make-up, rows reused by others, tokens added, generations leaving and coming back."""
    tables, generator = RowTables(len(members), 1, 16), torch.Generator().manual_seed(seed)
    adjustments = Adjustments(tables)
    running = [generation(prompt, output, SamplingParams(**parameters)) for prompt, output, parameters in members]
    for each in running:
        tables.admit(each)
    for who, leaves, picks in [(0, False, [0]), *turns]:
        if leaves:
            gone = running.pop(who % len(running))
            tables.release(gone)
            running.append(gone)
            tables.admit(gone)
        batch = [running[at] for at in sorted({pick % len(running) for pick in picks})]
        logits = torch.randn(len(batch), WIDTH, generator=generator)
        untouched = logits.clone()
        rows = np.array([each.row for each in batch])
        got = adjustments.apply(logits, batch, rows, np.array([each.output_len for each in batch]))
        for each, before, after in zip(batch, logits, got, strict=True):
            split = each.prompt_len
            expected = adjusted_alone(before, each.tokens[:split], each.tokens[split:], each.request.sampling)
            torch.testing.assert_close(after, expected)
            each.tokens.append(picks[0])
        assert torch.equal(logits, untouched)


def test_those_who_ask_for_nothing_pay_nothing() -> None:
    tables = RowTables(1, 1, 16)
    plain = generation([1], [2], SamplingParams())
    tables.admit(plain)
    logits = torch.randn(1, WIDTH)
    adjustments = Adjustments(tables)
    assert adjustments.apply(logits, [plain], np.array([0]), np.array([1])) is logits
    assert adjustments._said._counts.numel() == 0


PENALTIES: dict[str, Any] = {"repetition_penalty": 1.4, "presence_penalty": 0.6, "frequency_penalty": 0.4}


def engine_of(model: TinyModel, **others: Any) -> Engine:
    return Engine.from_folder(model.folder, EngineConfig(dtype="float32", **others))


def test_greedy_penalised_output_is_the_references(llama: TinyModel) -> None:
    sampling = greedy(30, **PENALTIES, logit_bias=((5, 3.0), (9, -100.0)))
    prompt = random_prompt(20, seed=3)
    got = run_all(engine_of(llama), [Request("x", prompt, sampling)]).deltas["x"]
    output: list[int] = []
    for delta in got:
        with torch.inference_mode():
            logits = llama.reference(torch.tensor([prompt + output])).logits[0, -1]
        assert delta.token_id == int(adjusted_alone(logits, prompt, output, sampling).argmax())
        assert delta.logprob == pytest.approx(float(logits.log_softmax(-1)[delta.token_id]), abs=1e-4)
        output.append(delta.token_id)
    assert output != run_all(engine_of(llama), [Request("x", prompt, greedy(30))]).tokens("x")


def test_penalties_survive_crowds_preemption_and_resume(llama: TinyModel) -> None:
    sampling = SamplingParams(temperature=0.8, seed=11, max_tokens=30, ignore_eos=True, **PENALTIES)
    prompt = random_prompt(20, seed=3)
    alone = run_all(engine_of(llama), [Request("x", prompt, sampling)]).tokens("x")
    crowd = [Request(f"n{n}", random_prompt(15 + n, seed=n), sampling) for n in range(8)]
    engine = engine_of(llama, max_running=5, kv_pages=9, token_budget=16)
    assert run_all(engine, [*crowd, Request("x", prompt, sampling)]).tokens("x") == alone
    assert engine.stats().preemptions > 0
    resumed = run_all(engine_of(llama), [Request("x", prompt, sampling, output_ids=[alone[:13]])])
    assert resumed.tokens("x") == alone[13:]


def test_draws_follow_the_penalised_distribution(llama: TinyModel) -> None:
    """The second token of many seeds, after a first that is given."""
    count, prompt = 3000, random_prompt(6, seed=2)
    parameters: dict[str, Any] = {"temperature": 1.5, "ignore_eos": True, "frequency_penalty": 2.0, "top_k": 12}
    engine = engine_of(llama)
    requests = [
        Request(str(seed), prompt, SamplingParams(seed=seed, max_tokens=2, **parameters), output_ids=[[4]])
        for seed in range(count)
    ]
    tokens = [run.token_id for deltas in run_all(engine, requests).deltas.values() for run in deltas]
    with torch.inference_mode():
        logits = llama.reference(torch.tensor([[*prompt, 4]])).logits[0, -1]
    scores = adjusted_alone(logits, prompt, [4], requests[0].sampling) / 1.5
    scores[scores < scores.topk(12).values[-1]] = -torch.inf
    probabilities = scores.double().softmax(-1).numpy()
    counts = np.bincount(tokens, minlength=len(probabilities))
    likely = probabilities * count >= 5
    assert counts[probabilities == 0].sum() == 0
    observed, wanted = counts[likely], probabilities[likely] * count
    assert chisquare([*observed, count - observed.sum()], [*wanted, count - wanted.sum()]).pvalue > 1e-3
