"""The trace tells what happened, step by step, and keeps no more than it was told to."""

import json
from pathlib import Path

from penstock_engine import Engine, EngineConfig, Request

from tests.engine.driving import greedy, run_all
from tests.engine.tiny import TinyModel, random_prompt


def requests() -> list[Request]:
    return [Request(f"r{n}", random_prompt(20 + n, seed=n), greedy(30)) for n in range(5)]


def test_the_trace_accounts_for_every_token_and_every_preemption(llama: TinyModel, tmp_path: Path) -> None:
    config = EngineConfig(dtype="float32", token_budget=16, max_running=4, kv_pages=9, trace_steps=10_000)
    engine = Engine.from_folder(llama.folder, config)
    run = run_all(engine, requests())
    path = tmp_path / "trace.jsonl"
    assert engine.trace.export(path) == len(run.steps)
    records = [json.loads(line) for line in path.read_text().splitlines()]

    stats = engine.stats()
    assert [each["step"] for each in records] == list(range(1, stats.steps + 1))
    assert sum(len(each["decoded"]) + sum(each["extended"].values()) for each in records) == stats.tokens_computed
    assert sum(len(each["preempted"]) for each in records) == stats.preemptions > 0
    assert sorted(name for each in records for name in each["admitted"]) == [f"r{n}" for n in range(5)]
    assert [(len(each["decoded"]), each["waiting"]) for each in records] == [
        (counts.decoding, counts.waiting) for counts in run.steps
    ]
    ended = {name: (each["step"], reason) for each in records for name, reason in each["ended"].items()}
    assert {name: reason for name, (_, reason) in ended.items()} == {f"r{n}": "length" for n in range(5)}
    for name, (last, _) in ended.items():
        ran = [each["step"] for each in records if name in each["decoded"] or name in each["extended"]]
        assert max(ran) == last
    ends = [each["start"] + each["seconds"] for each in records]
    assert all(end <= after["start"] for end, after in zip(ends, records[1:], strict=False))


def test_the_trace_is_a_ring(llama: TinyModel) -> None:
    engine = Engine.from_folder(llama.folder, EngineConfig(dtype="float32", trace_steps=3))
    run_all(engine, requests())
    assert [record.step for record in engine.trace] == [engine.stats().steps - back for back in (2, 1, 0)]


def test_without_the_setting_nothing_is_kept(llama: TinyModel) -> None:
    engine = Engine.from_folder(llama.folder, EngineConfig(dtype="float32"))
    run_all(engine, requests())
    assert list(engine.trace) == []
