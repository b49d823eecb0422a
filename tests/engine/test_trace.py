"""The trace tells what happened, step by step, and keeps no more than it was told to."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from penstock_engine import Engine, EngineBusy, EngineConfig, Request, SamplingParams
from penstock_engine.errors import TraceUnreadable
from penstock_engine.trace import StepRecord, read_trace

from tests.engine.driving import greedy, run_all
from tests.engine.tiny import TinyModel, random_prompt


def requests() -> list[Request]:
    return [Request(f"r{n}", random_prompt(20 + n, seed=n), greedy(30)) for n in range(5)]


def crowded(llama: TinyModel, **others: object) -> Engine:
    """So few pages that somebody is preempted."""
    config = EngineConfig(dtype="float32", token_budget=16, max_running=4, kv_pages=9, trace_steps=10_000, **others)  # type: ignore[arg-type]
    return Engine.from_folder(llama.folder, config)


def test_the_trace_accounts_for_every_token_and_every_preemption(llama: TinyModel, tmp_path: Path) -> None:
    engine = crowded(llama)
    run = run_all(engine, requests())
    path = tmp_path / "trace.jsonl"
    assert engine.trace.export(path) == len(run.steps)
    header, records = read_trace(path)

    stats = engine.stats()
    assert (header.max_running, header.token_budget, header.pages, header.page_size) == (4, 16, 9, 16)
    assert [each.step for each in records] == list(range(1, stats.steps + 1))
    assert sum(len(each.decoded) + each.prefill_tokens for each in records) == stats.tokens_computed
    assert sum(len(each.preempted) for each in records) == stats.preemptions > 0
    assert [(len(each.decoded), each.waiting, each.running) for each in records] == [
        (counts.decoding, counts.waiting, counts.running) for counts in run.steps
    ]
    ended = {name: (each.step, reason) for each in records for name, reason in each.ended.items()}
    assert {name: reason for name, (_, reason) in ended.items()} == {f"r{n}": "length" for n in range(5)}
    for name, (last, _) in ended.items():
        ran = [each.step for each in records if name in each.decoded or name in each.extended]
        assert max(ran) == last
    assert all(before.end <= after.start for before, after in pairwise(records))


def test_who_was_let_in_came_before_and_brought_what_was_cached(llama: TinyModel) -> None:
    engine = crowded(llama)
    run_all(engine, requests())
    records = list(engine.trace)
    came = {name: (when, each) for each in records for name, when in each.queued.items()}
    assert came.keys() == {f"r{n}" for n in range(5)}
    assert all(name in each.admitted and when <= each.start for name, (when, each) in came.items())
    again = [name for each in records for name in each.admitted.keys() - each.queued.keys()]
    assert sorted(again) == sorted(name for each in records for name in each.preempted)
    stats = engine.stats()
    assert sum(sum(each.admitted.values()) for each in records) == stats.tokens_cached > 0
    assert sum(each.prefix_queries for each in records) == stats.prefix_queries == sum(range(20, 25))
    assert sum(each.prefix_hits for each in records) == stats.prefix_hits


def test_pages_in_use_rise_and_fall_within_the_pool(llama: TinyModel) -> None:
    engine = crowded(llama)
    run_all(engine, requests())
    used = [each.pages_in_use for each in engine.trace]
    assert max(used) == 9
    assert used[-1] == 0
    assert all(each.pages_in_use + each.pages_cached <= 9 for each in engine.trace)


def test_choices_have_names_of_their_own(llama: TinyModel) -> None:
    engine = crowded(llama)
    engine.submit(Request("r", random_prompt(5, seed=1), SamplingParams(n=2, max_tokens=3, ignore_eos=True)))
    while engine.has_work:
        engine.step()
    ended = [name for each in engine.trace for name in each.ended]
    assert sorted(ended) == ["r", "r/1"]


def test_an_abort_is_in_the_record_of_the_next_step(llama: TinyModel) -> None:
    engine = crowded(llama)
    for request in requests()[:2]:
        engine.submit(request)
    engine.step()
    assert not engine.abort("nobody")
    engine.abort("r0")
    engine.step()
    assert [each.ended for each in engine.trace] == [{}, {"r0": "abort"}]


def test_a_trace_that_is_cut_short_is_read_up_to_there(llama: TinyModel, tmp_path: Path) -> None:
    engine = crowded(llama)
    run_all(engine, requests()[:1])
    path = tmp_path / "trace.jsonl"
    count = engine.trace.export(path)
    whole = read_trace(path)
    assert whole.records == list(engine.trace)
    path.write_text(path.read_text()[:-10])
    assert read_trace(path).records == whole.records[: count - 1]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("", 1),
        ("[]\n", 1),
        ("no\n", 1),
        ('{"trace":9}\n', 1),
        ('{"trace":1,"max_running":1}\n', 1),
        ("HEADER{}\n", 2),
        ("HEADERx\n", 2),
    ],
)
def test_what_is_no_trace_is_refused_by_its_line(llama: TinyModel, tmp_path: Path, content: str, line: int) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(content.replace("HEADER", crowded(llama).trace.header.line))
    with pytest.raises(TraceUnreadable, match=f"line {line}: ") as caught:
        read_trace(path)
    assert caught.value.line == line


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceUnreadable, match=r"nothing\.jsonl"):
        read_trace(tmp_path / "nothing.jsonl")


def test_a_record_is_one_line_of_json(llama: TinyModel) -> None:
    engine = crowded(llama)
    run_all(engine, requests()[:1])
    record = engine.trace.newest
    assert record is not None
    assert record.line.count("\n") == 1
    assert StepRecord(**json.loads(record.line)) == record


def test_the_trace_is_a_ring(llama: TinyModel) -> None:
    engine = Engine.from_folder(llama.folder, EngineConfig(dtype="float32", trace_steps=3))
    run_all(engine, requests())
    assert [record.step for record in engine.trace] == [engine.stats().steps - back for back in (2, 1, 0)]


def test_without_the_setting_nothing_is_kept(llama: TinyModel) -> None:
    engine = Engine.from_folder(llama.folder, EngineConfig(dtype="float32"))
    engine.submit(requests()[0])
    engine.step()
    engine.abort("r0")
    assert (list(engine.trace), engine.trace.newest, engine.trace._aborted) == ([], None, [])


def test_a_warm_up_runs_prefill_and_decoding_and_leaves_nothing_behind(llama: TinyModel) -> None:
    engine = crowded(llama)
    engine.warm_up()
    assert (engine.progress, engine.has_work, list(engine.trace)) == (6, False, [])
    engine.submit(requests()[0])
    with pytest.raises(EngineBusy):
        engine.warm_up()
    assert engine.step().measures == []
