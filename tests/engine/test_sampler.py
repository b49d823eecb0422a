"""The sampler draws from the distribution that the parameters describe, with noise that depends on position alone."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock_engine import Engine, EngineConfig, Request, SamplingParams, drawing
from penstock_engine.drawing import draw, drawing_on, logprobs_on
from penstock_engine.philox import philox4x32, uniforms
from penstock_kernels import sampling as definition
from penstock_kernels.gpu import sampling as gpu_sampling
from scipy.stats import chisquare, kstest  # type: ignore[import-untyped]  # scipy ships no types
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tests.engine.driving import Run, greedy, run_all, step_once
from tests.engine.tiny import EOS, TinyModel, random_prompt
from tests.kernels.sampling_cases import rows_of

DRAWS = 20_000


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_answers(counter: Any, key: Any, answer: Any) -> None:
    """The known-answer vectors of Random123."""
    c0, c1, c2, c3, k0, k1 = (np.array([each], np.uint64) for each in (*counter, *key))
    assert tuple(int(each[0]) for each in philox4x32((c0, c1, c2, c3), (k0, k1))) == answer


@pytest.mark.parametrize(("seed", "index", "choice"), [(0, 0, 0), (2**64 - 1, 5, 0), (0x299F31D0A4093822, 7, 3)])
def test_the_counter_is_the_position_and_the_key_the_seed(seed: int, index: int, choice: int) -> None:
    """The contract that lets any other device, or any later version, repeat a draw."""
    position, chosen, zero, low, high = (
        np.array([each], np.uint64) for each in (index, choice, 0, seed % 2**32, seed >> 32)
    )
    first = int(philox4x32((position, chosen, zero, zero), (low, high))[0][0])
    noise = uniforms(np.array([seed], np.uint64), np.array([index]), np.array([choice], np.uint32))
    assert noise.tolist() == [(first >> 8) / 2**24]


def test_noise_is_uniform_over_positions_and_over_seeds() -> None:
    count = 50_000
    one, many = np.full(count, 12345, np.uint64), np.arange(count).astype(np.uint64)
    choice = np.zeros(count, np.uint32)
    assert kstest(uniforms(one, np.arange(count), choice), "uniform").pvalue > 1e-3
    assert kstest(uniforms(many, np.zeros(count, np.int64), choice), "uniform").pvalue > 1e-3


def expected(logits: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float = 0) -> np.ndarray:
    """What `transformers` would sample from."""
    steps: list[Any] = [TemperatureLogitsWarper(temperature)]
    steps += [TopKLogitsWarper(top_k)] if top_k else []
    steps += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    steps += [MinPLogitsWarper(min_p)] if min_p else []
    scores: torch.Tensor = LogitsProcessorList(steps)(torch.zeros(1, 1), logits.unsqueeze(0))
    probabilities: np.ndarray = scores.double().softmax(-1)[0].numpy()
    return probabilities


def drawn_counts(logits: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float = 0) -> np.ndarray:
    """How often each token comes out over DRAWS positions of one seed."""
    ids = draw(
        logits.expand(DRAWS, -1),
        temperature=torch.full((DRAWS,), temperature),
        top_k=torch.full((DRAWS,), top_k),
        top_p=torch.full((DRAWS,), top_p),
        min_p=torch.full((DRAWS,), min_p),
        seed=torch.full((DRAWS,), 7),
        output_index=torch.arange(DRAWS),
        choice=torch.zeros(DRAWS, dtype=torch.int64),
    )
    return np.bincount(ids.numpy(), minlength=len(logits))


SETTINGS = [(1.0, 0, 1.0), (0.5, 0, 1.0), (1.7, 5, 1.0), (1.0, 0, 0.8), (0.8, 12, 0.9), (1.0, 1, 1.0), (2.0, 0, 0.3)]
SETTINGS_MIN_P = [(1.0, 0, 1.0, 0.1), (1.3, 9, 0.9, 0.15), (0.7, 0, 0.8, 0.3), (1.0, 0, 1.0, 1.0)]


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"), [*((*each, 0.0) for each in SETTINGS), *SETTINGS_MIN_P]
)
def test_draws_follow_the_distribution(temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    logits = torch.randn(24, generator=torch.Generator().manual_seed(3)) * 1.5
    counts = drawn_counts(logits, temperature, top_k, top_p, min_p)
    probabilities = expected(logits, temperature, top_k, top_p, min_p)
    possible = probabilities > 0
    assert counts[~possible].sum() == 0
    if possible.sum() > 1:
        assert chisquare(counts[possible], probabilities[possible] * DRAWS).pvalue > 1e-3


def test_the_check_notices_a_slightly_wrong_temperature() -> None:
    logits = torch.randn(24, generator=torch.Generator().manual_seed(3)) * 1.5
    counts = drawn_counts(logits, 1.1, 0, 1.0)
    assert chisquare(counts, expected(logits, 1.0, 0, 1.0) * DRAWS).pvalue < 1e-6


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**16),
    vocabulary=st.sampled_from([3, 63, 64, 65, 2000]),
    spread=st.sampled_from([0.0, 0.1, 1.0, 5.0]),
    step=st.sampled_from([0.0, 0.5]),
    filters=st.lists(st.tuples(st.sampled_from([0, 1, 7, 70]), st.sampled_from([0.05, 0.5, 0.95, 1.0])), min_size=4),
)
def test_rows_of_a_batch_do_not_change_what_another_draws(
    seed: int, vocabulary: int, spread: float, step: float, filters: list[tuple[int, float]]
) -> None:
    """Every row draws what the definition draws, whatever partial sort its neighbours forced, ties among logits too."""
    generator, count = torch.Generator().manual_seed(seed), len(filters)
    logits = torch.randn(count, vocabulary, generator=generator) * spread
    logits = (logits / step).round() * step if step else logits
    rows = {
        "logits": logits,
        "temperature": torch.ones(count),
        "top_k": torch.tensor([top_k for top_k, _ in filters]),
        "top_p": torch.tensor([top_p for _, top_p in filters]),
        "min_p": torch.zeros(count),
        "seed": torch.randint(-(2**63), 2**63 - 1, (count,), generator=generator),
        "output_index": torch.arange(count),
        "choice": torch.zeros(count, dtype=torch.int64),
    }
    ids = draw(**rows)
    assert torch.equal(ids, definition.sample(**rows))
    for row, token, (top_k, top_p) in zip(logits, ids.tolist(), filters, strict=True):
        if not step and spread:  # `transformers` cuts through ties
            # The set's last member may differ where a cumulative sum rounds to top_p itself.
            assert expected(row, 1.0, min(top_k, vocabulary), min(1.0, top_p + 1e-5))[token] > 0


@pytest.mark.parametrize("filters", ["", "k", "p", "kpm"])
def test_blocks_of_rows_draw_alike(monkeypatch: pytest.MonkeyPatch, filters: str) -> None:
    """Two rows at a time; one nucleus wider than every probe, masked tokens, a row that is not finite."""
    monkeypatch.setattr(drawing, "BLOCK", 6000)
    rows = rows_of(5, 3000, filters, spread=2.0)
    rows.logits[0] *= 0.001
    rows.logits[1, 10:] = -torch.inf
    rows.logits[2, 5] = torch.nan
    drawn, defined = draw(**rows._asdict()), definition.sample(**rows._asdict())
    assert torch.equal(drawn[[0, 1, 3, 4]], defined[[0, 1, 3, 4]])
    assert 0 <= int(drawn[2]) < 3000


@pytest.mark.parametrize("octaves", [31.999998, 32.0, 32.000004, 33.5, 200.0])
def test_what_lies_at_the_end_of_the_weights_is_drawn_as_defined(octaves: float) -> None:
    """Weights of 1 and of none, in front of the only other token, by uniforms of which some are 0."""
    count = 4000
    rows = rows_of(count, 2, "")
    steepness = 1.4426950408889634
    logits = torch.tensor([[-octaves / steepness, 0.0]]).expand(count, -1)
    rows = rows._replace(logits=logits, temperature=torch.ones(count))
    weights = [drawing._powers(torch.tensor([octaves])), definition._powers(torch.tensor([octaves]))]
    assert torch.equal(*((each * 2.0**32).floor() for each in weights))
    assert torch.equal(draw(**rows._asdict()), definition.sample(**rows._asdict()))


def test_a_device_draws_by_kernels_where_triton_compiles_them(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[torch.Size] = []
    right = gpu_sampling.sample

    def launch(logits: torch.Tensor, **parameters: torch.Tensor) -> torch.Tensor:
        launched.append(logits.shape)
        return right(logits, **parameters)

    monkeypatch.setattr(gpu_sampling, "sample", launch)
    assert drawing_on(torch.device("cpu")) is draw
    rows = rows_of(1, 40, "")
    assert torch.equal(drawing_on(torch.device("cuda"))(**rows._asdict()), definition.sample(**rows._asdict()))
    assert launched == [(1, 40)]
    own, finite = logprobs_on(torch.device("cuda"))(rows.logits, torch.tensor([3]))
    assert own.tolist() == pytest.approx([float(rows.logits.log_softmax(-1)[0, 3])], abs=1e-5)
    assert finite.tolist() == [True]
    assert drawing_on(torch.device("meta")) is definition.sample
    monkeypatch.setattr(drawing, "find_spec", lambda name: None)
    assert drawing_on(torch.device("cuda")) is definition.sample


def sampled(seed: int, **others: Any) -> SamplingParams:
    return SamplingParams(temperature=0.9, top_p=0.95, seed=seed, max_tokens=24, ignore_eos=True, **others)


def engine_of(model: TinyModel, **others: Any) -> Engine:
    return Engine.from_folder(model.folder, EngineConfig(dtype="float32", **others))


def test_a_seed_gives_the_same_tokens_alone_in_a_crowd_and_resumed(llama: TinyModel) -> None:
    prompt = random_prompt(21, seed=1)
    alone = run_all(engine_of(llama), [Request("x", prompt, sampled(2**63 + 5))]).tokens("x")

    crowd = [Request(f"n{n}", random_prompt(9 + n, seed=n), sampled(n)) for n in range(9)]
    mixed = run_all(
        engine_of(llama, token_budget=16, max_running=6), [*crowd, Request("x", prompt, sampled(2**63 + 5))]
    )
    assert mixed.tokens("x") == alone

    resumed = run_all(engine_of(llama), [Request("x", prompt, sampled(2**63 + 5), output_ids=[alone[:10]])])
    assert resumed.tokens("x") == alone[10:]
    assert resumed.deltas["x"][0].position == 10

    other = run_all(engine_of(llama), [Request("x", prompt, sampled(2**63 + 6))])
    assert other.tokens("x") != alone


def test_each_token_is_the_inverse_cdf_of_its_positions_noise(llama: TinyModel) -> None:
    """Worked out by hand from the reference's probabilities, in id order."""
    prompt, seed = random_prompt(21, seed=1), 987654321987654321
    sampling = SamplingParams(temperature=0.9, seed=seed, max_tokens=24, ignore_eos=True)
    tokens = run_all(engine_of(llama), [Request("x", prompt, sampling)]).tokens("x")
    rows = llama.logprobs([*prompt, *tokens])[len(prompt) - 1 : -1]
    noise = uniforms(np.full(24, seed, np.uint64), np.arange(24), np.zeros(24, np.uint32))
    cdf = (rows.double() / 0.9).softmax(-1).cumsum(-1).numpy()
    assert tokens == [int(np.searchsorted(row, u, side="right")) for row, u in zip(cdf, noise, strict=True)]


def test_preemption_changes_no_drawn_token(llama: TinyModel) -> None:
    requests = [Request(f"r{n}", random_prompt(17, seed=n), sampled(n)) for n in range(4)]
    roomy, tight = engine_of(llama), engine_of(llama, kv_pages=8)
    free, squeezed = run_all(roomy, requests), run_all(tight, requests)
    assert tight.stats().preemptions > 0
    for request in requests:
        assert squeezed.tokens(request.id) == free.tokens(request.id)


def test_engines_draw_seeds_where_none_is_given(llama: TinyModel) -> None:
    """Two requests differ; the same engine seed repeats them."""
    prompt = random_prompt(5, seed=0)
    pair = [Request(name, prompt, SamplingParams(max_tokens=16, ignore_eos=True)) for name in ("a", "b")]
    first = run_all(engine_of(llama, seed=1), pair)
    again = run_all(engine_of(llama, seed=1), pair)
    assert first.tokens("a") != first.tokens("b")
    assert [first.tokens("a"), first.tokens("b")] == [again.tokens("a"), again.tokens("b")]


def test_greedy_and_sampled_share_a_batch(llama: TinyModel) -> None:
    prompt = random_prompt(12, seed=4)
    alone = run_all(engine_of(llama), [Request("g", prompt, greedy(16))]).tokens("g")
    both = run_all(engine_of(llama), [Request("s", prompt, sampled(3)), Request("g", prompt, greedy(16))])
    assert both.tokens("g") == alone
    assert both.tokens("s")[:16] != alone


class TestEndings:
    """How a generation stops."""

    def some_greedy(self, model: TinyModel) -> tuple[list[int], list[int]]:
        """A prompt, and 16 greedy tokens after it, the end of sequence not among them."""
        prompt = random_prompt(10, seed=8)
        tokens = run_all(engine_of(model), [Request("x", prompt, greedy(16))]).tokens("x")
        assert EOS not in tokens
        return prompt, tokens

    def test_length(self, llama: TinyModel) -> None:
        prompt, tokens = self.some_greedy(llama)
        run = run_all(engine_of(llama), [Request("x", prompt, greedy(5))])
        assert run.tokens("x") == tokens[:5]
        assert [delta.finish_reason for delta in run.deltas["x"]] == [None] * 4 + ["length"]

    def test_stop_id(self, llama: TinyModel) -> None:
        prompt, tokens = self.some_greedy(llama)
        stop = tokens[6]
        run = run_all(engine_of(llama), [Request("x", prompt, greedy(16, stop_token_ids=(stop,)))])
        assert run.tokens("x") == tokens[: tokens.index(stop) + 1]
        assert run.finish_reason("x") == "stop"

    def test_end_of_sequence_of_the_model(self, models: Any) -> None:
        prompt, tokens = self.some_greedy(models("llama"))
        stop = tokens[6]
        model = models("llama", eos_token_id=stop)
        ends = SamplingParams(temperature=0, max_tokens=16)
        run = run_all(engine_of(model), [Request("x", prompt, ends), Request("y", prompt, greedy(16))])
        assert run.tokens("x") == tokens[: tokens.index(stop) + 1]
        assert run.finish_reason("x") == "stop"
        assert run.tokens("y") == tokens

    def test_min_tokens_keeps_stop_ids_out_until_then(self, llama: TinyModel) -> None:
        prompt, tokens = self.some_greedy(llama)
        stops = tuple(set(tokens[:3]))
        sampling = greedy(16, stop_token_ids=stops, min_tokens=8)
        run = run_all(engine_of(llama), [Request("x", prompt, sampling)])
        got = run.tokens("x")
        assert len(got) >= 8
        assert not set(got[:8]) & set(stops)
        logprobs = llama.logprobs([*prompt, *got])[len(prompt) - 1]
        assert run.deltas["x"][0].logprob == pytest.approx(float(logprobs[got[0]]), abs=1e-4)

    def test_the_end_of_the_context(self, llama: TinyModel) -> None:
        run = run_all(engine_of(llama, max_model_len=32), [Request("x", random_prompt(30, seed=3), greedy(9))])
        assert len(run.tokens("x")) == 2
        assert run.finish_reason("x") == "length"


def test_logprobs_are_the_models_own_and_come_as_asked(llama: TinyModel) -> None:
    prompt = random_prompt(9, seed=2)
    requests = [
        Request("none", prompt, sampled(1, logprobs=None)),
        Request("own", prompt, sampled(1, logprobs=0)),
        Request("top", prompt, sampled(1, logprobs=4)),
    ]
    run = run_all(engine_of(llama), requests)
    assert run.tokens("none") == run.tokens("own") == run.tokens("top")
    assert {delta.logprob for delta in run.deltas["none"]} == {None}
    rows = llama.logprobs([*prompt, *run.tokens("top")])[len(prompt) - 1 : -1]
    for own, top, row in zip(run.deltas["own"], run.deltas["top"], rows, strict=True):
        assert own.top_logprobs == ()
        assert own.logprob == top.logprob == pytest.approx(float(row[own.token_id]), abs=1e-4)
        values, ids = row.topk(4)
        assert [token for token, _ in top.top_logprobs] == ids.tolist()
        assert [value for _, value in top.top_logprobs] == pytest.approx(values.tolist(), abs=1e-4)


def test_step_by_step_positions_count_from_zero(llama: TinyModel) -> None:
    engine, run = engine_of(llama), Run()
    engine.submit(Request("x", random_prompt(3, seed=3), greedy(3)))
    for expected_position in range(3):
        step_once(engine, run)
        assert run.deltas["x"][-1].position == expected_position
    assert not engine.has_work
