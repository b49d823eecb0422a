"""One worker process serves real jobs with a real engine, through everything that can happen to them.

The worker is started once for all tests of this module: each leaves it as it found it.
"""

import os
import signal
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from penstock.broker import SERVE_TASK, make_celery, serve_queue
from penstock.clock import utc_now
from penstock.db import Database
from penstock.jobs import services
from penstock.jobs.journal import JournalEntry
from penstock.jobs.models import Job
from penstock.jobs.states import RunOutcome
from penstock.settings import Settings
from sqlalchemy import select

from tests.patience import eventually
from tests.worker.world import World, open_world

GREEDY = {"temperature": 0.0, "ignore_eos": True}
# Among few candidates: a resumed run prefills what it decoded before, and the last bits of its sums may differ. Each
# candidate's edge is one more place where that could tip a sample (with all 768 it was seen once in some 25 runs).
SAMPLED = {"temperature": 1.0, "top_k": 3, "seed": 11, "ignore_eos": True}


@pytest.fixture(scope="module")
def world(
    settings: Settings, migrated: Database, model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    with open_world(settings, migrated, model_folder, tmp_path_factory.mktemp("worker")) as opened:
        yield opened


def output_of(job: Job) -> dict[str, Any]:
    assert job.output is not None
    (choice,) = job.output["choices"]
    assert isinstance(choice, dict)
    return choice


def assert_whole(journal: list[JournalEntry], job: Job) -> None:
    """The journal is the output: every position once, in order, the end last."""
    output = output_of(job)
    assert [entry.index for entry in journal] == list(range(len(journal)))
    assert [entry.token_id for entry in journal] == [*output["token_ids"], None]
    assert "".join(entry.text for entry in journal) == output["text"]
    assert journal[-1].finish_reason == output["finish_reason"]


def test_a_job_runs_from_its_doorbell_to_its_result(world: World) -> None:
    job = world.run("Invoice 12", params=GREEDY | {"max_tokens": 12})
    assert job.state == "succeeded"
    assert output_of(job)["finish_reason"] == "length"
    assert job.output_tokens == len(output_of(job)["token_ids"]) == 12
    assert job.started_at is not None
    assert job.first_token_at is not None
    assert job.finished_at is not None
    assert job.created_at <= job.started_at <= job.first_token_at <= job.finished_at
    assert_whole(world.journal(job.id), job)
    assert world.events(job.id) == ["job.queued", "job.running", "job.succeeded"]


def test_three_hundred_jobs_are_in_flight_at_once(world: World) -> None:
    def running() -> int:
        with world.database.transaction() as session:
            return len(session.scalars(select(Job.id).where(Job.state == "running")).all())

    (engine,) = world.worker.children
    os.kill(engine, signal.SIGSTOP)
    try:
        ids = world.jobs.submit_many([f"Invoice {number}" for number in range(300)], params=GREEDY | {"max_tokens": 50})
        eventually(lambda: running() == 300, "300 running jobs")
    finally:
        os.kill(engine, signal.SIGCONT)
    jobs = [world.jobs.finished(job_id) for job_id in ids]
    assert {(job.state, job.runs, job.output_tokens) for job in jobs} == {("succeeded", 1, 50)}
    assert len({output_of(job)["text"] for job in jobs}) > 1
    for job in jobs:
        assert_whole(world.journal(job.id), job)


def test_tokens_of_a_shared_prompt_are_counted_as_cached(world: World) -> None:
    prompt = " ".join(str(number) for number in range(60))
    first, second = (world.run(prompt, params=GREEDY | {"max_tokens": 2}) for _ in range(2))
    assert first.cached_tokens == 0
    assert second.prompt_tokens is not None
    assert 0.9 * second.prompt_tokens < second.cached_tokens < second.prompt_tokens


def test_log_probabilities_are_journalled_when_asked_for(world: World) -> None:
    with_them = world.run(params=GREEDY | {"max_tokens": 3, "logprobs": True})
    without = world.run(params=GREEDY | {"max_tokens": 3})
    assert all(entry.logprob is not None and entry.logprob <= 0 for entry in world.journal(with_them.id)[:-1])
    assert all(entry.logprob is None for entry in world.journal(without.id))


def test_a_stop_string_across_tokens_ends_the_job(world: World) -> None:
    whole = output_of(world.run(params=GREEDY | {"max_tokens": 60}))
    text = whole["text"]
    stop = text[20:26]
    job = world.run(params=GREEDY | {"max_tokens": 60, "stop": [stop]})
    assert output_of(job)["text"] == text[: text.index(stop)]
    assert output_of(job)["finish_reason"] == "stop"
    assert len(output_of(job)["token_ids"]) < 60
    assert all(stop not in entry.text for entry in world.journal(job.id))
    assert_whole(world.journal(job.id), job)


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "seeded"])
def test_an_engine_crash_changes_nothing_in_the_output(world: World, params: dict[str, Any]) -> None:
    undisturbed = world.run(params=params | {"max_tokens": 700})
    job_id = world.jobs.submit(params=params | {"max_tokens": 700})
    world.tokens_in_flight(job_id, 40)
    (engine,) = world.worker.children
    os.kill(engine, signal.SIGKILL)
    job = world.jobs.finished(job_id)
    assert output_of(job) == output_of(undisturbed)
    assert_whole(world.journal(job_id), job)
    first, second = world.jobs.runs(job_id)
    assert (first.outcome, second.outcome) == (RunOutcome.CRASHED_ALONE, RunOutcome.FINISHED)
    assert first.reason == "the engine process was ended by SIGKILL"
    assert second.resumed_at_position >= 40
    assert job.own_crashes == 1
    assert "output.rewound" not in world.events(job_id)


def test_a_redis_that_lost_everything_is_given_the_journal_again(world: World) -> None:
    job_id = world.jobs.submit(params=GREEDY | {"max_tokens": 700})
    world.tokens_in_flight(job_id, 40)
    world.redis.flushall()
    job = world.jobs.finished(job_id)
    assert job.runs == 1
    assert_whole(world.journal(job_id), job)


def test_cancelling_keeps_the_output_so_far(world: World) -> None:
    job_id = world.jobs.submit(params=GREEDY | {"max_tokens": 900})
    world.tokens_in_flight(job_id, 20)
    with world.database.transaction() as session:
        services.cancel(session, world.jobs.get(job_id).tenant_id, job_id)
    job = world.jobs.finished(job_id)
    assert job.state == "cancelled"
    assert 20 <= job.output_tokens < 900
    assert output_of(job)["finish_reason"] == "cancelled"
    assert_whole(world.journal(job_id), job)


def test_a_deadline_ends_a_running_job_with_what_it_has(world: World) -> None:
    deadline = (utc_now() + timedelta(seconds=3)).isoformat()
    job_id = world.jobs.submit(params=GREEDY | {"max_tokens": 900}, deadline=deadline)
    world.tokens_in_flight(job_id, 1)
    (engine,) = world.worker.children
    os.kill(engine, signal.SIGSTOP)  # else it might finish in time
    try:
        job = world.jobs.finished(job_id)
    finally:
        os.kill(engine, signal.SIGCONT)
    assert job.state == "expired"
    assert 0 < job.output_tokens < 900


def test_a_request_that_the_engine_refuses_fails_alone(world: World) -> None:
    refused = world.jobs.submit(
        "0123456789" * 500, params=GREEDY | {"max_tokens": 5}
    )  # one word, to the test's counter
    accepted = world.jobs.submit(params=GREEDY | {"max_tokens": 5})
    job = world.jobs.finished(refused)
    assert job.state == "failed"
    assert job.error is not None
    assert job.error["code"] == "prompt_too_long"
    assert "1024 tokens" in job.error["message"]
    assert world.jobs.finished(accepted).state == "succeeded"


def test_doubled_and_lost_doorbells_change_nothing(world: World) -> None:
    celery = make_celery(world.settings)
    queue = serve_queue(world.deployment.id)
    for _ in range(20):
        celery.send_task(SERVE_TASK, args=[world.deployment.id], queue=queue)
    ids = [world.jobs.submit(params=GREEDY | {"max_tokens": 5}) for _ in range(5)]
    world.redis.delete(queue)
    assert {world.jobs.finished(job_id).runs for job_id in ids} == {1}
    celery.close()


def test_the_way_from_submit_to_claim_is_short(world: World) -> None:
    waits = []
    for _ in range(20):
        job = world.run(params=GREEDY | {"max_tokens": 1})
        assert job.started_at is not None
        waits.append((job.started_at - job.created_at).total_seconds())
        time.sleep(0.02)
    print(f"submit to claim: median {median(waits) * 1000:.1f} ms, worst {max(waits) * 1000:.1f} ms")
    assert median(waits) < world.settings.sweep_seconds  # rung for, not found by the sweeper
