"""The definition of a draw: against the engine's own on a CPU, against worked cases, and by its distribution."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from penstock_engine.drawing import draw as engine_draw
from penstock_engine.philox import uniform_bits
from penstock_kernels.sampling import sample, share, uniforms
from scipy import stats
from torch import Tensor

from tests.kernels.sampling_cases import rows_of

ROWS = 2000


@pytest.mark.parametrize("vocabulary", [1, 2, 17, 129, 1025])
@pytest.mark.parametrize("filters", ["", "k", "p", "m", "kp", "kpm"])
def test_thousands_of_draws_equal_the_engines(vocabulary: int, filters: str) -> None:
    """The engine on a CPU sorts no more than it must; greedy rows are among them."""
    rows = rows_of(ROWS, vocabulary, filters)
    assert torch.equal(sample(**rows._asdict()), engine_draw(**rows._asdict()))


def test_uniforms_are_the_engines_bit_for_bit() -> None:
    rows = rows_of(ROWS, 1, "")
    expected = uniform_bits(rows.seed.numpy().view(np.uint64), rows.output_index.numpy(), rows.choice.numpy())
    assert np.array_equal(uniforms(rows.seed, rows.output_index, rows.choice).numpy(), expected)


class Worked(NamedTuple):
    """Logits at temperature 1 and what may be drawn from them."""

    logits: list[float]
    possible: set[int]
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


WORKED = {
    "ties with the last of k are kept": Worked([1, 3, 2, 3, 2, 0], {1, 2, 3, 4}, top_k=3),
    "k of one": Worked([1, 3, 2], {1}, top_k=1),
    "k beyond the vocabulary": Worked([1, 1, 1], {0, 1, 2}, top_k=9),
    "the likeliest is always in the nucleus": Worked([0, 5, 0], {1}, top_p=1e-9),
    "ties at the nucleus's edge": Worked([0, 0, 0, -9], {0, 1, 2}, top_p=0.5),
    "a nucleus met exactly leaves out the next": Worked([0.0, 0.0, -50.0], {0, 1}, top_p=1 - 1e-7),
    "top-p of what top-k left": Worked([2, 1, 0, 0], {0}, top_k=2, top_p=0.7),
    "min-p": Worked([0, -0.6, -0.8], {0, 1}, min_p=0.5),
    "masked tokens": Worked([-float("inf"), 0, -float("inf"), 0], {1, 3}),
    "masked tokens under top-k": Worked([-float("inf"), 0, -float("inf"), 0], {1, 3}, top_k=3),
    "one token left": Worked([-float("inf"), -float("inf"), -3.5], {2}, top_p=0.9),
}


def draws(case: Worked, count: int, temperature: float = 1.0) -> Tensor:
    rows = rows_of(count, len(case.logits), "")
    return sample(
        torch.tensor(case.logits).expand(count, -1),
        temperature=torch.full((count,), temperature),
        top_k=torch.full((count,), case.top_k),
        top_p=torch.full((count,), case.top_p),
        min_p=torch.full((count,), case.min_p),
        seed=rows.seed,
        output_index=rows.output_index,
        choice=rows.choice,
    )


@pytest.mark.parametrize("name", WORKED)
def test_what_may_be_drawn(name: str) -> None:
    assert set(draws(WORKED[name], 400).tolist()) == WORKED[name].possible


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_draws_are_distributed_as_the_softmax(temperature: float) -> None:
    logits = [0.5, -1.0, 2.0, 1.5, -0.5, 1.0, 0.0, 1.9]
    counts = torch.bincount(draws(Worked(logits, set()), 20_000, temperature), minlength=8)
    expected = torch.softmax(torch.tensor(logits, dtype=torch.float64) / temperature, 0) * 20_000
    assert stats.chisquare(counts.numpy(), expected.numpy()).pvalue > 0.001


def test_a_wrong_temperature_fails_the_same_test() -> None:
    logits = [0.5, -1.0, 2.0, 1.5, -0.5, 1.0, 0.0, 1.9]
    counts = torch.bincount(draws(Worked(logits, set()), 20_000, 1.05), minlength=8)
    expected = torch.softmax(torch.tensor(logits, dtype=torch.float64), 0) * 20_000
    assert stats.chisquare(counts.numpy(), expected.numpy()).pvalue < 0.001


def test_temperature_zero_takes_the_first_of_the_likeliest() -> None:
    assert draws(Worked([1, 7, 7, 2], set()), 50, temperature=0.0).tolist() == [1] * 50


def test_a_row_without_a_finite_largest_logit_yields_a_token_id() -> None:
    for value in (torch.nan, torch.inf, -torch.inf):
        assert set(draws(Worked([value, value], set()), 3).tolist()) <= {0, 1}


@pytest.mark.parametrize("part", [0, 1, 12345678, 2**24 - 1])
def test_shares_are_exact_where_a_product_would_overflow(part: int) -> None:
    totals = [0, 1, 2**24, 2**32 * 128_256, 2**52 - 1]
    assert share(torch.tensor(totals), torch.tensor(part)).tolist() == [total * part >> 24 for total in totals]
