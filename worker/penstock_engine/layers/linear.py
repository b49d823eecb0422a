"""Linear layers, whose weights come from one or several tensors of a checkpoint, and embeddings."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penstock_engine.formats import RoundedWeight, StoredPart, stacked


class Linear(nn.Module):
    """`x @ weight.T + bias`; `weight` [rows, columns].

    `parts` names the checkpoint tensors that are stacked along the rows, with the rows of each: Q, K and V in one
    product, or gate and up. None is a layer under its own name. `stored` holds the parts of a checkpoint that has them
    in fewer bits; `weight` is a mere shape then, and a kernel takes what `rounded` makes of them.
    """

    def __init__(
        self,
        columns: int,
        rows: int,
        *,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device,
        parts: dict[str, int] | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, columns, dtype=dtype, device=device), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(rows, dtype=dtype, device=device), requires_grad=False) if bias else None
        self.parts = parts
        self.stored: tuple[StoredPart, ...] = ()

    def take(self, parts: Sequence[StoredPart]) -> None:
        """Have these parts, all there are and in their order, instead of `weight`."""
        self.stored = tuple(parts)
        self.weight = nn.Parameter(torch.empty_like(self.weight, device="meta"), requires_grad=False)

    def rounded(self) -> RoundedWeight:
        """The weight [rows, columns] of the parts that are stored. Raises ModelLoadError where they do not fit."""
        return stacked(self.stored, tuple(self.weight.shape))

    def checkpoint_views(self, prefix: str) -> Iterator[tuple[str, Tensor]]:
        """(name in the checkpoint, the memory to fill) for each tensor of this layer, found at `prefix`."""
        at = 0
        stem, _, own_name = prefix.rpartition(".")
        for name, rows in (self.parts or {own_name: len(self.weight)}).items():
            full_name = f"{stem}.{name}" if stem else name
            yield f"{full_name}.weight", self.weight[at : at + rows]
            if self.bias is not None:
                yield f"{full_name}.bias", self.bias[at : at + rows]
            at += rows

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Embedding(nn.Module):
    """Rows of `weight` [vocabulary, width] by token id."""

    def __init__(self, vocabulary: int, width: int, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocabulary, width, dtype=dtype, device=device), requires_grad=False)

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)
