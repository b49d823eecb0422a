"""Attention whose numbers depend on nothing but one query's own past: page by page, in order.

`scaled_dot_product_attention` chooses its blocks by the shape of the whole call, so a neighbour in the batch changes
the last bits of one's sums. Here every product has the same inner shape whatever the batch, and what a page adds is
added in the order of the pages; pages that a query does not see add an exact zero.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = 8  # products are of multiples of this many rows: float32 ones of 1 to 3 take another path through the library


def ordered_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, *, page_size: int, scale: float, softcap: float | None
) -> Tensor:
    """`q` [runs, kv_heads, queries, head_dim]; `k`, `v` [runs, kv_heads, slots, head_dim]; as `q`, in its dtype.

    `mask` [runs, 1, queries, slots] is 0 where a query may look and -inf elsewhere. Sums are in float32.
    """
    queries = q.shape[2]
    padding = -queries % ROWS
    rows = F.pad(q.float(), (0, 0, 0, padding))
    mask = F.pad(mask.float(), (0, 0, 0, padding))
    pages = _by_page(k.float(), page_size)
    compared = [rows @ page.transpose(2, 3) * scale for page in pages]
    if softcap is not None:
        compared = [torch.tanh(each / softcap) * softcap for each in compared]
    seen = torch.cat(compared, dim=-1) + mask
    weights = torch.exp(seen - seen.amax(dim=-1, keepdim=True))
    # A column of ones beside V gives the sum of the weights, by the same products.
    values = F.pad(v.float(), (0, 1), value=1.0)
    total = torch.zeros(*rows.shape[:-1], v.shape[-1] + 1, dtype=torch.float32, device=q.device)
    for at, value in enumerate(_by_page(values, page_size)):
        total += weights[..., at * page_size : (at + 1) * page_size] @ value
    return (total[:, :, :queries, :-1] / total[:, :, :queries, -1:]).to(q.dtype)


def _by_page(kv: Tensor, page_size: int) -> tuple[Tensor, ...]:
    """[runs, kv_heads, slots, width] as one [runs, kv_heads, page_size, width] for each page."""
    return kv.reshape(*kv.shape[:2], -1, page_size, kv.shape[-1]).unbind(2)
