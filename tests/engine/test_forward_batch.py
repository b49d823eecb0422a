"""The sizes that a step's rows are padded to."""

from penstock_engine.forward_batch import padded_size


def test_padding_is_small_and_its_sizes_few() -> None:
    sizes = [padded_size(rows) for rows in range(1, 4097)]
    assert all(size >= rows for rows, size in enumerate(sizes, start=1))
    assert all(size == padded_size(size) for size in sizes)
    assert max(size / rows for rows, size in enumerate(sizes, start=1) if rows > 64) <= 9 / 8
    assert len({size for rows, size in enumerate(sizes, start=1) if rows <= 512}) <= 36
