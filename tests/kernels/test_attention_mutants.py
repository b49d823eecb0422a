"""Kernels with one mistake each, made from the real source: the comparison with the reference sees every one."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from penstock_kernels.gpu.attention_tiles import Tiles

from tests.kernels.attention_batches import close, make_batch

GPU = "penstock_kernels.gpu."
EXTEND, DECODE, CORE = (GPU + name for name in ("extend_attention", "decode_attention", "attention_core"))
MISTAKES = {
    "a query does not see itself": (CORE, "positions[None, :] <= at[:, None]", "positions[None, :] < at[:, None]"),
    "a window one too narrow": (CORE, "at[:, None] - window", "at[:, None] - window + 1"),
    "keys taken for values": (CORE, "values = keys + KV_HEADS * HEAD_DIM", "values = keys"),
    "heads of the neighbour": (CORE, "keys = pool + kv_head", "keys = pool + (kv_head ^ 1)"),
    "slots one on": (CORE, "(positions % PAGE) * (2", "((positions + 1) % PAGE) * (2"),
    "pages one on": (CORE, "pages + positions // PAGE", "pages + positions // PAGE + 1"),
    "natural powers": (CORE, "else scale * LOG2_E", "else scale"),
    "earlier tiles not scaled": (CORE, "acc *= shrink[:, None]", "acc *= 1.0"),
    "earlier weights not scaled": (CORE, "total * shrink", "total"),
    "a soft cap by half": (CORE, "-2.0 * LOG2_E", "-1.0 * LOG2_E"),
    "scales of keys for values": (CORE, "load_scales(value_scales", "load_scales(key_scales"),
    "full tiles left out": (CORE, "full_begin, full_end, floor", "full_begin, full_begin, floor"),
    "answers of the neighbour": (EXTEND, "+ head * HEAD_DIM", "+ (head ^ 1) * HEAD_DIM"),
    "a chunk at the start of the context": (EXTEND, "context - queries + index", "index"),
    "the run before": (EXTEND, "index <= block)", "index < block)"),
    "splits of equal weight": (DECODE, "weight_logs - tl.max(weight_logs, axis=0)", "weight_logs * 0.0"),
    "the last split left out": (DECODE, "(split < splits)", "(split < splits - 1)"),
}  # fmt: skip
BATCH = {"runs": [(9, 37), (1, 50)], "pool_dtype": torch.int8, "window": 33, "softcap": 4.0}
PLAIN = {"runs": [(9, 37), (1, 50)]}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_seen(name: str, load: Callable[..., ModuleType]) -> None:
    where, right, wrong = MISTAKES[name]
    if where == CORE:
        load(CORE, right, wrong)
    module = load(DECODE if where == DECODE else EXTEND, *((right, wrong) if where != CORE else ()))
    assert not all(_is_right(module, batch) for batch in (PLAIN, BATCH))


def test_the_source_without_a_mistake_is_right(load: Callable[..., ModuleType]) -> None:
    load(CORE)
    for name in (EXTEND, DECODE):
        assert all(_is_right(load(name), batch) for batch in (PLAIN, BATCH))


def _is_right(module: ModuleType, options: dict[str, Any]) -> bool:
    made = make_batch(**options)
    tiles = {"tiles": Tiles(16, 16, 4, 2)}
    if module.__name__ == DECODE:
        module.__dict__["SHORTEST_SPLIT"] = 16
        return close(made.answer(module.decode_attention, splits=3, **tiles), made.exact())
    return close(made.answer(module.extend_attention, **tiles), made.exact())


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModuleType]:
    """A module from its own source, with `right` in it replaced by `wrong`; whoever imports it next gets this one."""

    def loaded(name: str, right: str = "", wrong: str = "") -> ModuleType:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        source = Path(spec.origin).read_text()
        assert right in source
        path = tmp_path / f"{name}.py"
        path.write_text(source.replace(right, wrong) if right else source)
        copy = importlib.util.spec_from_file_location(name, path)
        assert copy is not None
        assert copy.loader is not None
        module = importlib.util.module_from_spec(copy)
        monkeypatch.setitem(sys.modules, name, module)
        copy.loader.exec_module(module)
        return module

    return loaded
