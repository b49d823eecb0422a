"""A real engine process at the other end of the bridge."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from penstock.jobs.states import JobState, RunOutcome
from penstock_worker.bridge import Bridge
from penstock_worker.engine_child import EngineFailed
from penstock_worker.messages import EngineSpec
from penstock_worker.requests import request_of
from penstock_worker.running import Finished, GivenBack

from tests.patience import eventually
from tests.worker.bridging import OpenBridge, idle_writer, opened_bridge

PLACES = 3


@pytest.fixture(scope="module")
def opened(model_folder: Path) -> Iterator[OpenBridge]:
    spec = EngineSpec(str(model_folder), max_running=PLACES, kv_bytes=2**27, threads=1)
    with opened_bridge(spec) as opened:
        yield opened
    assert opened.ended == ["the engine process ended with exit code 0"]


def test_jobs_run_together_and_leave_their_places(opened: OpenBridge) -> None:
    jobs = [opened.job(max_tokens=20) for _ in range(PLACES)]
    for job in jobs:
        opened.submit(job)
    eventually(lambda: all(job.ending for job in jobs), "the ends")
    assert {job.ending for job in jobs} == {Finished(JobState.SUCCEEDED)}
    assert {len(job.entries) for job in jobs} == {21}
    assert len({job.choices[0].token_ids[-1] for job in jobs}) == 1  # greedy, and the same prompt
    eventually(lambda: opened.bridge.free_places == PLACES, "the places")


def test_no_more_is_reserved_than_fits(opened: OpenBridge) -> None:
    bridge = opened.bridge
    assert [bridge.reserve() for _ in range(PLACES + 1)] == [True] * PLACES + [False]
    for _ in range(PLACES):
        bridge.release()
    bridge.places = 1
    assert [bridge.reserve(), bridge.reserve()] == [True, False]
    bridge.release()
    bridge.places = PLACES


def test_each_choice_of_a_job_takes_a_place(opened: OpenBridge) -> None:
    opened.bridge.pause(True)
    job = opened.job(max_tokens=5, n=2)
    heard = opened.bridge._report
    opened.submit(job)
    assert opened.bridge.free_places == 1
    eventually(lambda: opened.bridge._report is not heard, "the engine to take it")
    assert opened.bridge.free_places == 1
    opened.bridge.pause(False)
    eventually(lambda: opened.bridge.free_places == PLACES, "the places")


def test_a_paused_engine_generates_nothing_and_then_goes_on(opened: OpenBridge) -> None:
    opened.bridge.pause(True)
    job = opened.job(max_tokens=10)
    opened.submit(job)
    time.sleep(0.2)
    assert job.entries == []
    assert opened.bridge.lively
    opened.bridge.pause(False)
    eventually(lambda: job.ending, "the end")
    assert len(job.entries) == 11


def test_an_aborted_job_gives_its_place_back(opened: OpenBridge) -> None:
    job = opened.job(max_tokens=900)
    opened.submit(job)
    eventually(lambda: job.entries, "a token")
    opened.bridge.abort(job)
    eventually(lambda: opened.bridge.free_places == PLACES, "the place")
    assert not opened.bridge.busy


def test_an_idle_engine_answers_pings(opened: OpenBridge) -> None:
    heard = opened.bridge._heard_at
    deadline = time.monotonic() + 30
    while opened.bridge._heard_at == heard and time.monotonic() < deadline:
        opened.bridge.watch()
        time.sleep(0.05)
    assert opened.bridge._heard_at > heard


def test_a_refused_request_fails_its_job_with_the_engines_reason(opened: OpenBridge) -> None:
    job = opened.job(max_tokens=5)
    job.prompt_ids = [5] * 2000
    opened.submit(job)
    eventually(lambda: job.ending, "the refusal")
    assert isinstance(job.ending, Finished)
    assert job.ending.error is not None
    assert job.ending.error["code"] == "prompt_too_long"
    assert "2000" in job.ending.error["message"]


def test_a_resumed_job_that_had_all_its_tokens_just_ends(opened: OpenBridge) -> None:
    done = opened.job(max_tokens=5)
    opened.submit(done)
    eventually(lambda: done.ending, "the end")
    successor = opened.job(max_tokens=5)
    successor.choices[0].replay(done.entries[:-1])
    successor.entries = done.entries[:-1]
    opened.submit(successor)
    eventually(lambda: successor.ending, "the end")
    assert successor.ending == Finished(JobState.SUCCEEDED)
    assert successor.entries == done.entries


def test_a_folder_that_is_no_model_fails_with_the_engines_reason(tmp_path: Path) -> None:
    bridge = Bridge(EngineSpec(str(tmp_path), max_running=1), idle_writer(), places=1, stall_seconds=60)
    with pytest.raises(EngineFailed, match=r"config\.json") as failure:
        bridge.start()
    assert failure.value.code == "model_not_found"


def test_a_choice_that_ends_at_a_stop_string_leaves_the_engine_while_the_others_go_on(opened: OpenBridge) -> None:
    warm = {"n": 2, "temperature": 4.0, "top_k": 3}
    whole = opened.job(max_tokens=100, **warm)
    opened.submit(whole)
    eventually(lambda: whole.ending, "the end")
    first, second = ("".join(entry.text for entry in whole.entries if entry.choice == choice) for choice in (0, 1))
    stop = next(first[at : at + 5] for at in range(len(first) - 5) if first[at : at + 5] not in second)
    opened.bridge.pause(True)
    job = opened.job(max_tokens=900, stop=[stop], **warm)
    opened.submit(job)
    opened.bridge.pause(False)
    eventually(lambda: job.choices[0].finish_reason, "the stop string")
    opened.bridge.pause(True)
    opened.bridge.stats = {}
    eventually(lambda: _figures(opened.bridge), "figures")
    assert job.ending is None
    assert (opened.bridge.stats["running"], opened.bridge.stats["waiting"]) == (1, 0)
    opened.bridge.pause(False)
    opened.bridge.abort(job)
    eventually(lambda: opened.bridge.free_places == PLACES, "the places")


def _figures(bridge: Bridge) -> dict[str, int | float]:
    """The engine's last, after a ping that it is due to answer with them."""
    bridge.watch()
    return bridge.stats


def test_a_deadline_ends_a_job_within_the_engine(opened: OpenBridge) -> None:
    job = opened.job(max_tokens=900, seconds_left=0.05)
    opened.submit(job)
    eventually(lambda: job.ending, "the deadline")
    assert job.ending == Finished(JobState.EXPIRED)
    assert job.entries[-1].finish_reason == "expired"


def test_a_job_that_finds_the_engines_queue_full_goes_back(opened: OpenBridge) -> None:
    opened.bridge.pause(True)
    many = [opened.job(max_tokens=1, n=128) for _ in range(34)]
    opened.bridge.places = len(many)
    for job in many:
        opened.bridge._reserved += 1  # as threads do that claim at once, before the engine can say how full it is
        assert opened.bridge.submit(job, request_of(job))
    opened.bridge.pause(False)
    last = many[-1]
    eventually(lambda: last.ending, "the refusal")
    assert isinstance(last.ending, GivenBack)
    assert last.ending.outcome is RunOutcome.HANDED_BACK
    for job in many:
        opened.bridge.abort(job)
    opened.bridge.places = PLACES
    eventually(lambda: opened.bridge.free_places == PLACES, "the places")
