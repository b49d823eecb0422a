"""How likely given tokens are and what is likeliest in their places, against float64: torch's way, and the compiled."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from penstock_kernels.cpu import support
from penstock_kernels.logprobs import likeliest as definition
from torch import Tensor

Find = Callable[[Tensor, Tensor, int], Tensor]

WAYS: list[Find] = [definition]
if not support.lacking():
    from penstock_kernels.cpu.likeliest import PEAKS, ROOM, STRIDE, likeliest

    WAYS.append(likeliest)


def rows_of(count: int, vocabulary: int, spread: float = 4.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count * vocabulary)
    logits = torch.randn(count, vocabulary, generator=generator) * spread
    return logits, torch.randint(0, vocabulary, (count,), generator=generator)


def told(find: Find, logits: Tensor, targets: Tensor, tops: int) -> tuple[Tensor, Tensor, Tensor]:
    """The targets' log probabilities, the likeliest's, and the ids of these."""
    packed = find(logits, targets, tops).numpy()
    assert packed.shape == (len(logits), 1 + 2 * min(tops, logits.shape[1]))
    middle = 1 + packed.shape[1] // 2
    values = torch.from_numpy(packed[:, :middle].copy().view(np.float32))
    return values[:, 0], values[:, 1:], torch.from_numpy(packed[:, middle:].copy())


def check(find: Find, logits: Tensor, targets: Tensor, tops: int, *, ids: bool = True) -> None:
    """Equal to float64; equal logits in the order of their ids."""
    exact = logits.double().log_softmax(-1)
    likely, order = exact.sort(dim=-1, descending=True, stable=True)
    own, values, found = told(find, logits, targets, tops)
    torch.testing.assert_close(own.double(), exact.gather(1, targets.unsqueeze(1)).squeeze(1), atol=2e-6, rtol=1e-6)
    torch.testing.assert_close(values.double(), likely[:, :tops], atol=2e-6, rtol=1e-6)
    assert not ids or torch.equal(found.long(), order[:, :tops])


@pytest.mark.parametrize("find", WAYS)
@pytest.mark.parametrize("vocabulary", [1, 15, 64, 65, 768, 5003])
@pytest.mark.parametrize("tops", [0, 1, 20])
def test_they_are_those_of_float64(find: Find, vocabulary: int, tops: int) -> None:
    check(find, *rows_of(4, vocabulary), tops)


@pytest.mark.parametrize("find", WAYS)
def test_tokens_that_are_ruled_out_come_last_and_weigh_nothing(find: Find) -> None:
    logits, targets = rows_of(3, 300)
    logits[:, 7:] = -torch.inf
    targets[:] = torch.tensor([0, 6, 200])
    own, values, ids = told(find, logits, targets, 20)
    exact = logits.double().log_softmax(-1)
    torch.testing.assert_close(own.double(), exact[range(3), targets], atol=2e-6, rtol=1e-6)
    assert torch.equal(ids[:, :7].long(), exact[:, :7].argsort(dim=-1, descending=True))
    assert (values[:, 7:] == -torch.inf).all()


@pytest.mark.parametrize("find", WAYS)
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
@pytest.mark.parametrize("at", [0, 70, 298])
def test_a_row_that_is_not_finite_says_so_and_no_other_does(find: Find, poison: float, at: int) -> None:
    logits, targets = rows_of(3, 299)
    logits[1, at] = poison
    own, values, ids = told(find, logits, targets, 5)
    assert own.isnan().tolist() == [False, True, False]
    assert values.isnan().all(dim=-1).tolist() == [False, True, False]
    assert not values[[0, 2]].isnan().any()
    assert ((ids >= 0) & (ids < 299)).all()
    check(find, logits[[0, 2]], targets[[0, 2]], 5)


@pytest.mark.parametrize("find", WAYS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_rows_of_nothing_else_are_not_finite(find: Find, value: float) -> None:
    own, values, ids = told(find, torch.full((2, 130), value), torch.zeros(2, dtype=torch.int64), 3)
    assert own.isnan().all()
    assert ((ids >= 0) & (ids < 130)).all()
    assert values.isnan().all()


@pytest.mark.skipif(bool(support.lacking()), reason=f"compiled kernels: {support.lacking()}")
class TestCompiled:
    """What its bound and its room make hard."""

    @pytest.mark.parametrize("vocabulary", [65, 768, 2500])
    def test_equal_logits_come_in_the_order_of_their_ids(self, vocabulary: int) -> None:
        logits, targets = rows_of(6, vocabulary, spread=2.0)
        check(likeliest, logits.round(), targets, 20)

    def test_all_are_equal(self) -> None:
        check(likeliest, torch.full((2, 3 * ROOM), -1.5), torch.tensor([0, 3 * ROOM - 1]), 20)

    def test_the_later_the_likelier(self) -> None:
        logits, targets = rows_of(3, 4 * STRIDE + 3)
        check(likeliest, logits.sort(dim=-1).values, targets, 20)

    def test_more_are_asked_for_than_peaks_are_kept(self) -> None:
        """Then all are set aside, and most of them are given up again; the last to come is one of those asked for."""
        tops = PEAKS + 1
        logits, targets = rows_of(2, ROOM + 1)
        before = logits[:, :-1].sort(dim=-1, descending=True).values
        logits[:, -1] = (before[:, tops - 2] + before[:, tops - 1]) / 2
        check(likeliest, logits, targets, tops)

    def test_all_of_them_lie_in_one_lane(self) -> None:
        """Then one peak speaks for many."""
        logits, targets = rows_of(2, 3 * STRIDE)
        logits[:, ::PEAKS] += 100
        check(likeliest, logits, targets, 20)

    def test_rows_of_a_wider_table(self) -> None:
        logits, targets = rows_of(4, 200)
        check(likeliest, logits[:, 3:150], targets % 147, 20)
