"""How much a GPU gives to K and V: the arithmetic, and the probe over a device whose figures are made up."""

from dataclasses import dataclass, field, replace
from typing import Any

import penstock_engine.engine as engine_module
import pytest
import torch
from penstock_engine import Engine, EngineConfig, InvalidConfig, Request
from penstock_engine.batch import ScheduleBatch, StepSamples
from penstock_engine.profiling import GRAPH_BYTES, MARGIN, MIB, Footprint, kv_memory, largest_steps, measure, room
from penstock_engine.runner import ModelRunner
from penstock_engine.sizing import KVShape
from penstock_engine.tables import RowTables

from tests.engine.driving import greedy, run_all
from tests.engine.tiny import TinyModel

GIB = 1024 * MIB
LLAMA_8B = KVShape(layers=32, page_size=16, kv_heads=8, head_dim=128, dtype=torch.bfloat16)
CONFIG = EngineConfig(max_running=5, token_budget=33, max_model_len=48, dtype="float32", kernels="torch")


@dataclass
class MadeUp:
    """A device on which a step takes what `takes` says, keeps it, and has `total` for everything."""

    total: int = 8 * GIB
    in_use: int = 2 * GIB
    takes: list[int] = field(default_factory=lambda: [300 * MIB, 700 * MIB])
    held: int = 0
    most: int = 0
    said: list[str] = field(default_factory=list)

    def step(self) -> None:
        """What torch's allocator does: it holds what the largest step took."""
        taken = self.takes.pop(0)
        if self.in_use + taken > self.total:
            raise torch.OutOfMemoryError(f"tried to allocate {taken}")
        self.held, self.most = max(self.held, taken), max(self.most, self.in_use + taken)
        self.said.append("step")

    def settle(self) -> None:
        self.held, self.most = 0, self.in_use
        self.said.append("settle")

    def used(self) -> int:
        return self.in_use

    def peak(self) -> int:
        return self.most

    def free(self) -> int:
        self.said.append("free")
        return self.total - self.in_use - self.held


class TestArithmetic:
    def test_a_share_of_what_is_free_less_the_margin(self) -> None:
        found = Footprint(free=100 * GIB, decode=GIB)
        assert room(found, LLAMA_8B, share=0.5, context=1) == (100 * GIB - MARGIN) // 2

    def test_graphs_hold_a_decoding_step_and_something_each(self) -> None:
        found = Footprint(free=100 * GIB, decode=GIB, graphs=35)
        assert room(found, LLAMA_8B, share=1.0, context=1) == 99 * GIB - MARGIN - 35 * GRAPH_BYTES

    @pytest.mark.parametrize(("context", "fits"), [(8 * 16, True), (8 * 16 + 1, False)])
    def test_one_context_has_to_fit_beside_the_null_page(self, context: int, fits: bool) -> None:
        found = Footprint(free=MARGIN + 9 * LLAMA_8B.page_bytes, decode=0)
        if fits:
            assert room(found, LLAMA_8B, share=1.0, context=context) == 9 * LLAMA_8B.page_bytes
            return
        figures = "129 tokens take 20 MiB, and for them there are 18: .* at most 128"
        with pytest.raises(InvalidConfig, match=figures) as caught:
            room(found, LLAMA_8B, share=1.0, context=context)
        assert caught.value.field == "max_model_len"

    def test_less_than_the_margin_is_nothing(self) -> None:
        with pytest.raises(InvalidConfig, match="there are 0: 90% of the 100 that"):
            room(Footprint(free=100 * MIB, decode=0), LLAMA_8B, share=0.9, context=1)


class TestTheProbe:
    def test_what_is_free_is_looked_at_beside_both_steps(self) -> None:
        device = MadeUp()
        found = measure(device.step, device.step, device, graphs=3)
        assert found == Footprint(free=6 * GIB - 700 * MIB, decode=300 * MIB, graphs=3)
        assert device.said == ["settle", "step", "step", "free"]

    @pytest.mark.parametrize("takes", [[7 * GIB, 0], [0, 7 * GIB]])
    def test_a_step_without_room_is_told_by_what_makes_it_smaller(self, takes: list[int]) -> None:
        device = MadeUp(takes=takes)
        with pytest.raises(InvalidConfig, match="tried to allocate 7516192768") as caught:
            measure(device.step, device.step, device, graphs=0)
        assert caught.value.field == "token_budget"


class TestTheLargestSteps:
    def test_all_rows_run_and_every_token_is_spent(self) -> None:
        tables = RowTables(5, 3, 16)
        decode, prefill = largest_steps(CONFIG, 48)
        batch = decode.batch(tables)
        assert [(len(each.tokens), each.computed_len) for each in batch.generations] == [(48, 47)] * 5
        assert batch.extend_lens == [1] * 5
        assert len(batch.sampled) == 5
        assert not tables.pages.any()
        batch = prefill.batch(RowTables(5, 3, 16))
        assert batch.extend_lens == [7, 7, 7, 6, 6]
        assert len(batch.sampled) == 5
        assert all(each.request.sampling.penalises for each in batch.generations)

    def test_a_short_context_bounds_a_row(self) -> None:
        _, prefill = largest_steps(replace(CONFIG, token_budget=500), 48)
        assert prefill.lens == [(48, 48)] * 5


@pytest.fixture
def engine(llama: TinyModel) -> Engine:
    return Engine.from_folder(llama.folder, replace(CONFIG, kv_pages=8))


def test_the_steps_run_and_the_pool_is_what_they_leave(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a real model, with a device of made-up figures: what ran, and the bytes that come of it."""
    device, ran = MadeUp(total=3 * GIB), []
    right = ModelRunner.run

    def run(runner: ModelRunner, batch: ScheduleBatch) -> StepSamples:
        device.step()
        ran.append(sum(batch.extend_lens))
        samples = right(runner, batch)
        assert samples.finite == [True] * 5
        return samples

    monkeypatch.setattr(ModelRunner, "run", run)
    shape = KVShape.of(engine.model_config, CONFIG, torch.float32)
    found = kv_memory(engine._runner._model, CONFIG, shape, max_model_len=48, dtype=torch.float32, memory=device)
    assert ran == [5, 33]
    assert found == int((GIB - 700 * MIB - MARGIN) * 0.9)


def test_a_length_that_was_asked_for_has_to_fit_and_the_models_own_need_not(llama: TinyModel) -> None:
    """A step's prefill has to; a longer request is refused by itself."""
    engine = Engine.from_folder(llama.folder, replace(CONFIG, max_model_len=None, kv_pages=8))
    shape, model = KVShape.of(engine.model_config, CONFIG, torch.float32), engine._runner._model
    pages = 4  # of 16 tokens, one of them the null page: room for the 33 of a step

    def found(length: int | None) -> int:
        device = MadeUp(in_use=0, total=MARGIN + pages * shape.page_bytes)
        config = replace(CONFIG, max_model_len=length, memory_share=1.0)
        return kv_memory(model, config, shape, max_model_len=256, dtype=torch.float32, memory=device)

    assert found(None) == pages * shape.page_bytes
    with pytest.raises(InvalidConfig, match="K and V of 256 tokens"):
        found(256)
    pages = 3
    with pytest.raises(InvalidConfig, match="K and V of 33 tokens"):
        found(None)


def test_an_engines_pool_is_what_was_found(llama: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """And it serves; what is given in pages or bytes is not looked for."""
    asked: list[Any] = []

    def found(model: Any, config: EngineConfig, shape: KVShape, **given: Any) -> int:
        asked.append(given)
        return 7 * shape.page_bytes

    monkeypatch.setattr(engine_module, "kv_memory", found)
    engine = Engine.from_folder(llama.folder, CONFIG)
    assert engine.stats().pages_total == 6
    assert len(run_all(engine, [Request("a", [1, 2, 3], greedy(4))]).tokens("a")) == 4
    Engine.from_folder(llama.folder, replace(CONFIG, kv_pages=5))
    Engine.from_folder(llama.folder, replace(CONFIG, kv_bytes=1 << 20))
    assert len(asked) == 1


def test_on_a_cpu_it_is_a_share_of_the_hosts_memory(engine: Engine) -> None:
    shape = KVShape.of(engine.model_config, CONFIG, torch.float32)
    assert kv_memory(engine._runner._model, CONFIG, shape, max_model_len=48, dtype=torch.float32) > MIB


@pytest.mark.parametrize(
    ("field", "value"), [("kv_dtype", "int4"), ("memory_share", 0.0), ("memory_share", 1.1), ("quantization", "int2")]
)
def test_what_cannot_be_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(InvalidConfig) as caught:
        EngineConfig(**{field: value})  # type: ignore[arg-type]  # which is the point
    assert caught.value.field == field
