"""The pool's memory: pages move and are wiped with their scales, and a page takes the bytes that are counted for it."""

import pytest
import torch
from penstock_engine import EngineConfig
from penstock_engine.config import KVDType
from penstock_engine.kv_pool import KVPool
from penstock_engine.model_config import read_model_config
from penstock_engine.sizing import KVShape, make_pool
from penstock_kernels.store_kv import store_kv
from torch import Tensor

from tests.engine.tiny import TinyModel

CPU = torch.device("cpu")
PAGE, HEADS, DIM = 4, 2, 16


@pytest.fixture(params=[torch.float32, torch.int8, torch.float8_e4m3fn])
def pool(request: pytest.FixtureRequest) -> KVPool:
    return KVPool(layers=2, pages=6, page_size=PAGE, kv_heads=1, head_dim=DIM, dtype=request.param, device=CPU)


def fill(pool: KVPool, page: int, seed: int) -> None:
    """Store numbers of its own into every slot of a page, in both layers."""
    slots = torch.arange(page * PAGE, (page + 1) * PAGE)
    for layer in range(2):
        kv = torch.randn(PAGE, HEADS, DIM, generator=torch.Generator().manual_seed(10 * seed + layer)) * (1 + seed)
        store_kv(pool.slots(layer), slots, kv, pool.slot_scales(layer))


def content(pool: KVPool, page: int) -> list[Tensor]:
    """What a page holds of K, V and scales, in both layers."""
    found = [each for layer in range(2) for each in (pool.pages(layer), pool.page_scales(layer)) if each is not None]
    return [each[page].float().clone() for each in found]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_pages_are_copied_with_their_scales_all_read_before_any_is_written(pool: KVPool) -> None:
    for page in (1, 2, 3):
        fill(pool, page, seed=page)
    before = {page: content(pool, page) for page in (1, 2, 3)}
    assert not same(before[1], before[2])
    pool.copy([(1, 2), (2, 3)])
    assert same(content(pool, 1), before[1])
    assert same(content(pool, 2), before[1])
    assert same(content(pool, 3), before[2])


def test_a_wiped_page_has_no_trace_of_what_was_not_a_number(pool: KVPool) -> None:
    fill(pool, 1, seed=1)
    kept = content(pool, 1)
    broken = torch.full((PAGE, HEADS, DIM), torch.nan)
    for layer in range(2):
        store_kv(pool.slots(layer), torch.arange(2 * PAGE, 3 * PAGE), broken, pool.slot_scales(layer))
    assert any(each.isnan().any() for each in content(pool, 2))
    pool.zero([2])
    assert not any(each.any() for each in content(pool, 2))
    assert same(content(pool, 1), kept)


@pytest.mark.parametrize(("kv_dtype", "of_a_head"), [("auto", 2 * DIM), ("int8", DIM + 2), ("fp8", DIM + 2)])
def test_a_page_takes_what_is_counted_for_it(llama: TinyModel, kv_dtype: KVDType, of_a_head: int) -> None:
    """The model's own type, or a byte for each number and two for each head's scale."""
    config = EngineConfig(page_size=PAGE, kv_dtype=kv_dtype)
    shape = KVShape.of(read_model_config(llama.folder), config, torch.bfloat16)
    made = make_pool(shape, 2, CPU)
    parts = [made.pages(layer) for layer in range(shape.layers)]
    parts += [each for layer in range(shape.layers) if (each := made.page_scales(layer)) is not None]
    assert sum(each.nbytes for each in parts) == 3 * shape.page_bytes
    assert shape.page_bytes == 3 * PAGE * 2 * 2 * of_a_head  # layers, slots, K and V, heads
