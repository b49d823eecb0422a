"""Rows of a table by their index: token embeddings, and the hidden states whose logits are wanted."""

from torch import Tensor


def take_rows(table: Tensor, indices: Tensor, scale: float = 1.0) -> Tensor:
    """`table[indices] * scale` [count, width] from `table` [rows, width] and `indices` [count]; no index is checked.

    The product is rounded to the table's type. A model that scales its embeddings passes its own rounded scale.
    """
    taken = table.index_select(0, indices)
    return taken if scale == 1.0 else taken.mul_(scale)
