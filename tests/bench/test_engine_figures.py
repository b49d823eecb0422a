"""Ratios, targets and loads: what a figure is made of."""

from statistics import median

import pytest

from bench.engine_parts.decode import Row, rates
from bench.engine_parts.loads import RaggedTrace, SharedPrefix
from bench.engine_parts.protocol import Load, Measured
from bench.engine_parts.targets import Target, speed_ratios


def row(contestant: str, batch: int, *decode_rates: float) -> Row:
    rounds: list[dict[str, float | None]] = [
        {"tokens_per_s": rate / 2, "decode_tokens_per_s": rate, "step_ms": None} for rate in decode_rates
    ]
    return Row(contestant, batch, rounds=rounds)


def test_rates_count_the_whole_time_or_the_decoding_steps_alone() -> None:
    measured = Measured(seconds=2.0, decode_steps=[0.1, 0.1, 0.4], first_tokens=[1, 2, 3, 4])
    told = rates(Load(batch=4, prompt=8, output=10), measured)
    assert told["tokens_per_s"] == pytest.approx(4 * 10 / 2.0)
    assert told["decode_tokens_per_s"] == pytest.approx(4 * 3 / 0.6)
    assert told["step_ms"] == pytest.approx(100)


def test_a_ratio_is_of_medians_and_of_the_same_batch() -> None:
    rows = [row("penstock bf16", 8, 30.0, 90.0, 60.0), row("llama.cpp bf16", 8, 40.0, 10.0, 40.0)]
    ratios = speed_ratios(rows)
    assert ratios["ratio_llamacpp_b8"] == 1.5
    assert ratios["ratio_llamacpp_b32"] is None
    assert ratios["ratio_generate_b8"] is None


@pytest.mark.parametrize(
    ("at", "value", "met"),
    [("least", 1.8, True), ("least", 1.79, False), ("most", 0.04, True), ("most", 0.041, False), ("most", None, None)],
)
def test_a_target_is_met_at_its_bound_and_unknown_without_a_figure(at: str, value: float | None, met: bool) -> None:
    bound = 1.8 if at == "least" else 0.04
    assert Target("some", at, bound).met(value) is met  # type: ignore[arg-type]  # of the two words


def test_a_ragged_trace_repeats_itself_and_has_lognormal_lengths() -> None:
    trace = RaggedTrace(requests=2000, prompt_median=32, output_median=16)
    requests, again = (trace.draw(vocabulary=100, most=1024) for _ in range(2))
    assert requests == again
    outputs = [each.sampling.max_tokens or 0 for each in requests]
    assert median(outputs) == pytest.approx(16, rel=0.1)
    assert sum(outputs) / len(outputs) == pytest.approx(16 * 1.65, rel=0.1)
    assert median(len(each.prompt_ids) for each in requests) == pytest.approx(32, rel=0.1)
    assert max(len(each.prompt_ids) for each in requests) <= 1024


def test_jobs_share_their_beginning_and_nothing_more() -> None:
    load = SharedPrefix(jobs=8, shared=100, tails=(4, 9))
    prompts = [each.prompt_ids for each in load.draw(vocabulary=10_000)]
    assert all(prompt[:100] == prompts[0][:100] for prompt in prompts)
    assert len({tuple(prompt[100:104]) for prompt in prompts}) == 8
    assert {len(prompt) - 100 for prompt in prompts} <= set(range(4, 10))
    assert [len(each.prompt_ids) for each in load.draw(vocabulary=2)] == [len(prompt) for prompt in prompts]
