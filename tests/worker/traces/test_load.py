"""The load of `penstock engine trace --model`."""

from pathlib import Path

from penstock_engine import Engine, EngineConfig
from penstock_worker.traces.load import RaggedLoad

LOAD = RaggedLoad(requests=40, prompt=30, output=20, shared=8, seed=3)


def test_the_same_load_for_the_same_seed_and_another_for_another() -> None:
    assert list(LOAD.make(100, 512)) == list(LOAD.make(100, 512))
    other = RaggedLoad(requests=40, prompt=30, output=20, shared=8, seed=4)
    assert list(other.make(100, 512)) != list(LOAD.make(100, 512))


def test_lengths_are_ragged_and_all_begin_alike() -> None:
    requests = list(LOAD.make(100, 512))
    own = sorted(len(each.prompt_ids) - 8 for each in requests)
    assert 20 <= own[20] <= 45
    assert own[-1] > 3 * own[20] > 9 * own[0]
    assert len({tuple(each.prompt_ids[:8]) for each in requests}) == 1
    assert len({tuple(each.prompt_ids[8:12]) for each in requests}) == 40


def test_the_longest_fit_the_context() -> None:
    for each in RaggedLoad(requests=60, prompt=100, output=100, shared=500).make(50, 128):
        assert len(each.prompt_ids) + (each.sampling.max_tokens or 0) <= 128
        assert each.sampling.max_tokens


def test_requests_come_one_after_the_other_and_all_end(model_folder: Path) -> None:
    engine = Engine.from_folder(model_folder, EngineConfig(threads=1, kv_bytes=2**25, trace_steps=10_000))
    ended: list[int] = []
    RaggedLoad(requests=6, prompt=8, output=4, every=3).run(engine, ended.append)
    assert sum(ended) == 6
    began = [record.step for record in engine.trace for _ in record.queued]
    assert began == sorted(began)
    assert len(set(began)) == 6
