"""The trace on disk: bounded, complete to the last step, and the engine's process writes it."""

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from io import FileIO
from itertools import chain
from pathlib import Path

import pytest
from penstock_engine import Engine, EngineConfig, Request, SamplingParams
from penstock_engine.errors import TraceUnreadable
from penstock_engine.trace import StepTrace
from penstock_worker.bridge import Bridge
from penstock_worker.engine_child import EngineFailed
from penstock_worker.messages import EngineSpec
from penstock_worker.traces.file import KEPT, TraceFile, read_kept

from tests.patience import eventually
from tests.worker.bridging import idle_writer, opened_bridge

Steps = Callable[[int], Iterator[StepTrace]]


@pytest.fixture
def steps(model_folder: Path) -> Steps:
    """An engine's trace, after each of so many steps."""
    engine = Engine.from_folder(model_folder, EngineConfig(kv_bytes=2**25, threads=1, trace_steps=1))

    def run(count: int) -> Iterator[StepTrace]:
        engine.submit(Request("r", [5, 6, 7], SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)))
        for _ in range(count):
            engine.step()
            yield engine.trace

    return run


def test_every_step_is_there_at_once_and_no_more_than_two_files_of_them(steps: Steps, tmp_path: Path) -> None:
    run = steps(25)
    first = next(run)
    with closing(TraceFile(tmp_path, "dep", first.header, steps=10)) as file:
        for trace in chain([first], run):
            file.take(trace)
            file.take(trace)  # nothing new
            assert read_kept(file.path).records[-1] == trace.newest
    kept = read_kept(tmp_path)
    assert [record.step for record in kept.records] == list(range(11, 26))
    assert kept.header == first.header
    assert len(list(tmp_path.iterdir())) == 2


def test_traces_of_earlier_processes_are_kept_but_not_for_ever(steps: Steps, tmp_path: Path) -> None:
    for pid in range(KEPT + 3):
        for end in ("", ".1"):
            old = tmp_path / f"dep-{pid}.jsonl{end}"
            old.touch()
            os.utime(old, (pid, pid))
    (tmp_path / "other-1.jsonl").touch()
    trace = next(steps(1))
    with closing(TraceFile(tmp_path, "dep", trace.header)) as file:
        file.take(trace)
    left = {path.name for path in tmp_path.iterdir()}
    assert len([name for name in left if name.startswith("dep-") and name.endswith(".jsonl")]) == KEPT
    assert {f"dep-{os.getpid()}.jsonl", f"dep-{KEPT + 2}.jsonl", "other-1.jsonl"} <= left
    assert not {"dep-0.jsonl", "dep-0.jsonl.1"} & left


def test_a_disk_that_takes_no_more_ends_the_trace_and_nothing_else(steps: Steps, tmp_path: Path) -> None:
    run = steps(3)
    trace = next(run)
    file = TraceFile(tmp_path, "dep", trace.header)
    file.close()
    file._file = FileIO("/dev/full", "wb")
    for trace in run:
        file.take(trace)
    assert read_kept(tmp_path).records == []


def test_a_folder_without_a_trace_says_so(tmp_path: Path) -> None:
    with pytest.raises(TraceUnreadable, match="holds no trace"):
        read_kept(tmp_path)


def test_the_engine_process_records_what_it_serves(model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "traces"
    spec = EngineSpec(str(model_folder), 3, kv_bytes=2**27, threads=1, name="dep_1", trace_folder=str(folder))
    with opened_bridge(spec) as opened:
        job = opened.job(max_tokens=12)
        opened.submit(job)
        eventually(lambda: job.ending, "the end")
        records = read_kept(folder).records
    assert [list(record.admitted) for record in records[:1]] == [[job.request_id]]
    assert [record.ended for record in records[-1:]] == [{job.request_id: "length"}]
    assert sum(len(record.decoded) + len(record.extended) for record in records) == 12


def test_a_folder_that_cannot_be_written_is_named_by_its_variable(model_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    spec = EngineSpec(str(model_folder), 1, kv_bytes=2**25, threads=1, trace_folder=str(file))
    with pytest.raises(EngineFailed, match="PENSTOCK_TRACE_FOLDER") as failure:
        Bridge(spec, idle_writer(), places=1, stall_seconds=60).start()
    assert failure.value.code == "invalid_engine_config"
