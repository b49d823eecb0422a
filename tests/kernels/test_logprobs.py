"""Log probabilities of chosen tokens: the definition against softmax in float64, the kernels against the definition."""

from collections.abc import Iterator

import pytest
import torch
from penstock_kernels.checks import ArgumentError
from penstock_kernels.gpu import logprobs as gpu
from penstock_kernels.logprobs import chosen_logprobs
from torch import Tensor

CHUNK = 64
# Numpy's word on what is meant here: an infinite logit less itself.
pytestmark = pytest.mark.filterwarnings(
    "ignore:invalid value encountered:RuntimeWarning",
    "ignore:All-NaN slice:RuntimeWarning",
    "ignore:divide by zero:RuntimeWarning",
)


@pytest.fixture(autouse=True)
def small_chunks_on_poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(gpu, "CHUNK", CHUNK)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def rows_of(count: int, vocabulary: int, spread: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count * vocabulary)
    logits = torch.randn(count, vocabulary, generator=generator) * spread
    return logits, torch.randint(0, vocabulary, (count,), generator=generator)


def expected(logits: Tensor, tokens: Tensor) -> Tensor:
    return logits.double().log_softmax(-1).gather(1, tokens.unsqueeze(1)).squeeze(1).float()


@pytest.mark.parametrize("vocabulary", [1, 17, CHUNK, 300])
@pytest.mark.parametrize("spread", [0.0, 3.0, 100.0])
def test_both_are_the_logarithm_of_softmax(vocabulary: int, spread: float) -> None:
    rows = rows_of(3, vocabulary, spread)
    for found in (chosen_logprobs, gpu.chosen_logprobs):
        logprobs, finite = found(*rows)
        assert torch.allclose(logprobs, expected(*rows), rtol=1e-6, atol=2e-6)
        assert finite.tolist() == [True] * 3


def test_masked_tokens_weigh_nothing_and_whole_chunks_may_be_masked() -> None:
    logits, tokens = rows_of(4, 200)
    logits[:, :70] = -torch.inf
    logits[2:, 100:] = -torch.inf
    tokens[:] = 80
    logprobs, finite = gpu.chosen_logprobs(logits, tokens)
    assert torch.allclose(logprobs, expected(logits, tokens), atol=2e-6)
    assert finite.all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("at", [0, 70, 199])
def test_one_bad_logit_makes_its_row_bad_and_no_other(value: float, at: int) -> None:
    logits, tokens = rows_of(3, 200)
    right = expected(logits, tokens)
    logits[1, at] = value
    for found in (chosen_logprobs, gpu.chosen_logprobs):
        logprobs, finite = found(logits, tokens)
        assert finite.tolist() == [True, False, True]
        assert torch.allclose(logprobs[[0, 2]], right[[0, 2]], atol=2e-6)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_rows_of_nothing_else_are_bad(value: float) -> None:
    logits = torch.full((2, 130), value)
    for found in (chosen_logprobs, gpu.chosen_logprobs):
        assert found(logits, torch.zeros(2, dtype=torch.int64))[1].tolist() == [False, False]


def test_rows_of_a_wider_table_and_the_chunks_that_a_gpu_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    logits, tokens = torch.full((2, 5003), torch.nan), torch.tensor([4999, 3])
    logits[:, :5000] = rows_of(2, 5000)[0]
    logprobs, finite = gpu.chosen_logprobs(logits[:, :5000], tokens)
    assert torch.allclose(logprobs, expected(logits[:, :5000], tokens), atol=2e-6)
    assert finite.all()


def test_no_rows_are_none() -> None:
    logprobs, finite = gpu.chosen_logprobs(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64))
    assert (len(logprobs), len(finite)) == (0, 0)


@pytest.mark.parametrize(
    ("logits", "tokens"),
    [
        (torch.zeros(2, 0), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 5, dtype=torch.float16), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 5), torch.zeros(3, dtype=torch.int64)),
        (torch.zeros(2, 5), torch.zeros(2, dtype=torch.int32)),
    ],
)
def test_other_arguments_are_refused(logits: Tensor, tokens: Tensor) -> None:
    with pytest.raises(ArgumentError):
        gpu.chosen_logprobs(logits, tokens)
