"""No page is handed out twice, lost, or taken back twice."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock_engine.errors import OutOfPages
from penstock_engine.page_allocator import NULL_PAGE, PageAllocator


@settings(deadline=None)
@given(total=st.integers(1, 20), moves=st.lists(st.integers(-20, 20), max_size=60))
def test_pages_are_conserved(total: int, moves: list[int]) -> None:
    """A positive move takes so many pages; a negative one gives the oldest taken back."""
    allocator = PageAllocator(total)
    taken: list[int] = []
    for move in moves:
        if move > allocator.free_count:
            with pytest.raises(OutOfPages):
                allocator.take(move)
        elif move >= 0:
            taken += allocator.take(move)
        else:
            allocator.give_back(taken[:-move])
            del taken[:-move]
        assert len(set(taken)) == len(taken)
        assert set(taken) <= set(range(1, total + 1))
        assert allocator.free_count == total - len(taken)


@pytest.mark.parametrize("page", [NULL_PAGE, 5, -1, 2])
def test_a_page_that_is_not_out_cannot_come_back(page: int) -> None:
    allocator = PageAllocator(4)
    assert allocator.take(1) == [1]
    with pytest.raises(ValueError, match=f"page {page} is not taken"):
        allocator.give_back([page])
    allocator.give_back([1])
    with pytest.raises(ValueError, match="page 1 is not taken"):
        allocator.give_back([1])
