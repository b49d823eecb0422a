"""The race between real contestants on a model small enough for a test, and what becomes of those that lack or fail."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench.engine_parts import contestants
from bench.engine_parts.contestants import Contestant, ContestantFailed, Room, Running
from bench.engine_parts.decode import Plan, Race, race
from bench.engine_parts.report import race_record, row_record
from bench.engine_parts.shapes import Shape, write
from bench.engine_parts.targets import speed_ratios, verdicts

SMALL = Shape(hidden=128, intermediate=256, layers=2, heads=2, kv_heads=1, vocabulary=512, positions=128)
PLAN = Plan(batches=(1, 3), prompt=8, output=6, rounds=2)
ROOM = Room(threads=1, sequences=3, context=14)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "small"
    write(SMALL, folder)
    return folder


@pytest.fixture(scope="module")
def done(folder: Path) -> Race:
    """Ours in bf16 and transformers' generate; llama.cpp is not installed at the path given."""
    own, generate = contestants.own(folder, ROOM)[0], contestants.transformers(folder, ROOM)[0]
    return race([own, generate, *contestants.llama_cpp(folder, ROOM, folder / "nothing", folder)], PLAN)


def test_every_round_of_every_batch_is_measured_and_all_run_the_same_model(done: Race) -> None:
    for row in done.rows:
        if not row.missing:
            assert len(row.rounds) == PLAN.rounds
            assert row.tokens_per_s is not None
            assert row.tokens_per_s > 0
            assert row.same_first_tokens == 1.0


def test_decoding_alone_is_told_by_those_who_show_their_steps(done: Race) -> None:
    own, generate = (row_record(row) for row in done.rows if row.batch == 3 and not row.missing)
    # Every step takes less than the whole time, so decoding alone is faster than with the prefill.
    assert own["decode_tokens_per_s"] > own["tokens_per_s"]
    assert own["step_ms"] > 0
    assert generate["decode_tokens_per_s"] is None


def test_what_is_not_installed_has_a_reason_and_no_figure(done: Race) -> None:
    missing = [row for row in done.rows if row.contestant.startswith("llama.cpp")]
    assert len(missing) == 3 * len(PLAN.batches)
    assert all("make bench-peers" in row.missing and row.tokens_per_s is None for row in missing)
    ratios = speed_ratios(done.rows)
    assert ratios["ratio_generate_b1"] is not None
    assert ratios["ratio_llamacpp_b1"] is None
    judged = {each["key"]: each for each in verdicts(ratios)}
    assert judged["ratio_llamacpp_b1"]["met"] is None


def test_the_record_holds_each_round_and_the_memory_of_each_process(done: Race) -> None:
    record = race_record(done, PLAN, speed_ratios(done.rows))
    assert [len(row["rounds"]) for row in record["rows"] if not row["missing"]] == [2, 2, 2, 2]
    assert set(record["processes"]) == {"penstock bf16", "transformers generate"}
    for process in record["processes"].values():
        assert process["about"]
        assert 0 < process["loaded"]["pss"] <= process["loaded"]["rss"] <= process["end"]["peak"]


def scripted(name: str, start: str) -> Contestant:
    """One that loads no model: `start` is the body of the function that starts it."""
    program = f"from bench.engine_parts.protocol import *\ndef start():\n    {start}\nserve(start)"
    return Contestant(name, (sys.executable, "-c", program))


def always(token: int) -> str:
    return f"return Ready(lambda load: Measured(1.0, [], [{token}] * load.batch), {{}})"


def test_another_model_is_no_peer() -> None:
    with pytest.raises(ContestantFailed, match="another model"):
        race([scripted("ours", always(7)), scripted("another", always(8))], replace(PLAN, batches=(16,), rounds=1))


def test_one_that_finds_that_it_cannot_run_leaves_its_reason() -> None:
    lame = scripted("lame", "raise CannotRun('no such unit')")
    done = race([scripted("able", always(7)), lame], replace(PLAN, rounds=1))
    assert [row.missing for row in done.rows] == ["", "", "no such unit", "no such unit"]
    assert set(done.processes) == {"able"}


def test_one_that_ends_is_named_with_its_last_words() -> None:
    command = (sys.executable, "-c", "raise SystemExit('no such model')")
    with pytest.raises(ContestantFailed, match=r"(?s)frail ended with 1:.*no such model"):
        Running(Contestant("frail", command))
