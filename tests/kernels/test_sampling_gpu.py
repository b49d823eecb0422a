"""The sampling kernels in Triton's interpreter: the very tokens of the definition, whichever way they are found."""

import re
from collections.abc import Callable, Iterator

import pytest
import torch
from penstock_kernels import sampling as definition
from penstock_kernels.checks import DtypeError, ShapeError
from penstock_kernels.gpu import sampling as gpu
from torch import Tensor

from tests.kernels.sampling_cases import Rows, rows_of

SMALL = {"CHUNK": 64, "BINS": 64, "CANDIDATES": 32}


@pytest.fixture(autouse=True, scope="module")
def poisoned_memory() -> Iterator[None]:
    """What the launcher allocates holds NaN, or the largest integer, until a kernel writes it."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that small vocabularies have several chunks, and more tokens than there is room for candidates."""
    for name, value in SMALL.items():
        monkeypatch.setattr(gpu, name, value)


def drawn(rows: Rows) -> Tensor:
    return gpu.sample(**rows._asdict())


def defined(rows: Rows) -> Tensor:
    return definition.sample(**rows._asdict())


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("vocabulary", [1, 17, 129, 300])
@pytest.mark.parametrize("filters", ["", "m"])
def test_tokens_of_free_rows_are_those_of_the_definition(vocabulary: int, filters: str) -> None:
    rows = rows_of(17, vocabulary, filters)
    assert torch.equal(drawn(rows), defined(rows))


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("vocabulary", [17, 200])
@pytest.mark.parametrize("filters", ["k", "p", "kpm"])
def test_tokens_of_filtered_rows_are_those_of_the_definition(vocabulary: int, filters: str) -> None:
    """A greedy and a free row among them; the candidates settle most."""
    rows = rows_of(8, vocabulary, filters)
    assert torch.equal(drawn(rows), defined(rows))


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("filters", ["k", "p", "kp"])
def test_flat_rows_are_searched_whole(filters: str) -> None:
    """The filters keep more tokens than there is room for: all 130 lie within an octave of one another."""
    rows = rows_of(3, 130, filters, spread=0.05)
    rows = rows._replace(top_k=rows.top_k * 4)
    assert torch.equal(drawn(rows), defined(rows))


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("filters", ["k", "p"])
def test_ties_stand_or_fall_together(filters: str) -> None:
    rows = rows_of(4, 100, filters)
    rows = rows._replace(logits=rows.logits.round())
    assert torch.equal(drawn(rows), defined(rows))


@pytest.mark.usefixtures("small_tiles")
def test_masked_tokens_are_never_drawn() -> None:
    rows = rows_of(6, 130, "kp")
    allowed = torch.rand(6, 130, generator=torch.Generator().manual_seed(3)) < 0.1
    allowed[:, 77] = True
    rows = rows._replace(logits=rows.logits.masked_fill(~allowed, -torch.inf))
    tokens = drawn(rows)
    assert allowed.gather(1, tokens.unsqueeze(1)).all()
    assert torch.equal(tokens, defined(rows))


def test_at_the_size_of_tiles_that_a_gpu_runs() -> None:
    """Two chunks of 4096, 2048 candidates; a strided row; one nucleus too wide for the candidates."""
    rows = rows_of(5, 5000, "kp")
    logits = torch.full((5, 5003), torch.nan)
    logits[:, :5000] = rows.logits
    logits[2, :5000] *= 0.01
    rows = rows._replace(logits=logits[:, :5000], top_p=torch.tensor([0.9, 0.5, 0.99, 1.0, 1.0]))
    rows = rows._replace(top_k=torch.tensor([0, 40, 0, 0, 3]))
    assert torch.equal(drawn(rows), defined(rows))


@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")  # numpy's word on what is meant here
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.usefixtures("small_tiles")
def test_a_row_without_a_finite_largest_logit_yields_a_token_id() -> None:
    rows = rows_of(3, 70, "kp")._replace(logits=torch.tensor([[torch.nan], [torch.inf], [-torch.inf]]).expand(3, 70))
    tokens = drawn(rows._replace(logits=rows.logits.contiguous()))
    assert ((tokens >= 0) & (tokens < 70)).all()


MISREADINGS: dict[str, Callable[[Rows], Rows]] = {
    "the upper half of the seed": lambda rows: rows._replace(seed=rows.seed ^ 1 << 40),
    "the output index": lambda rows: rows._replace(output_index=rows.output_index + 1),
    "the choice": lambda rows: rows._replace(choice=rows.choice + 1),
    "the temperature": lambda rows: rows._replace(temperature=rows.temperature * 1.5),
    "top-k": lambda rows: rows._replace(top_k=rows.top_k * 0),
    "top-p": lambda rows: rows._replace(top_p=rows.top_p * 0.3),
    "min-p": lambda rows: rows._replace(min_p=rows.min_p * 0),
    "the order of ids": lambda rows: rows._replace(logits=rows.logits.roll(1, 1)),
}


@pytest.mark.usefixtures("small_tiles")
def test_a_definition_that_reads_a_parameter_wrongly_is_caught() -> None:
    rows = rows_of(27, 40, "kpm", spread=1.0)
    turn = torch.arange(27) % 3  # a filter to a row
    rows = rows._replace(
        top_k=torch.where(turn == 0, rows.top_k, 0),
        top_p=torch.where(turn == 1, rows.top_p, 1.0),
        min_p=torch.where(turn == 2, rows.min_p * 2, 0.0),
    )
    tokens = drawn(rows)
    assert torch.equal(tokens, defined(rows))
    assert [name for name, misread in MISREADINGS.items() if torch.equal(tokens, defined(misread(rows)))] == []


def test_arguments_that_would_read_other_memory_are_refused_by_name() -> None:
    rows = rows_of(3, 20, "")
    for change, error, message in (
        ({"logits": rows.logits.half()}, DtypeError, "logits is float16 and should be float32"),
        ({"top_k": rows.top_k.int()}, DtypeError, "top_k is int32 and should be int64"),
        ({"min_p": rows.min_p[:2]}, ShapeError, re.escape("min_p is [2] and should be [3]")),
        ({"seed": rows.seed.repeat_interleave(2)[::2]}, ShapeError, "seed has strides"),
        ({"logits": rows.logits[:, :0]}, ShapeError, "logits has no columns"),
    ):
        with pytest.raises(error, match=message):
            gpu.sample(**(rows._asdict() | change))
