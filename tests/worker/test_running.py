"""A job on its holder: how runs end, and what a successor reads from the journal."""

import time
from pathlib import Path

import pytest
from penstock.jobs.journal import JournalEntry
from penstock.jobs.lease import Claim
from penstock.jobs.models import Job
from penstock.jobs.states import JobState, RunOutcome
from penstock.registry.tokenizer import ModelTokenizer
from penstock_worker.messages import Delta
from penstock_worker.running import Finished, GivenBack, Lost, RunningJob


@pytest.fixture(scope="module")
def tokenizer(model_folder: Path) -> ModelTokenizer:
    return ModelTokenizer.from_folder(model_folder)


def claimed(fence: int = 1) -> RunningJob:
    now = time.monotonic()
    return RunningJob(Claim(Job(id="job_a", params={}), fence, []), claimed_at=now, lease_until=now + 60)


def delta(token_id: int, finish_reason: str | None = None) -> Delta:
    return Delta("job_a.1", 0, token_id, None, finish_reason)


def test_the_first_ending_stands(tokenizer: ModelTokenizer) -> None:
    job = claimed()
    job.restore([], tokenizer, [5])
    assert job.end(GivenBack(RunOutcome.HANDED_BACK, "stopping"))
    assert not job.end(Finished(JobState.CANCELLED), "cancelled")
    job.take([delta(7)])
    assert job.entries == []
    assert job.ending == GivenBack(RunOutcome.HANDED_BACK, "stopping")


def test_the_engines_last_token_ends_the_run(tokenizer: ModelTokenizer) -> None:
    job = claimed()
    job.restore([], tokenizer, [5])
    endings = []
    for token in (delta(7), delta(8, "length")):
        job.take([token])
        endings.append(job.ending)
    assert endings == [None, Finished(JobState.SUCCEEDED)]
    assert job.first_token_seconds is not None
    assert [entry.finish_reason for entry in job.entries] == [None, None, "length"]


@pytest.mark.parametrize("state", [JobState.CANCELLED, JobState.EXPIRED])
def test_a_successor_ends_a_job_as_its_journal_says(tokenizer: ModelTokenizer, state: JobState) -> None:
    first = claimed()
    first.restore([], tokenizer, [5])
    first.take([delta(7)])
    first.end(Finished(state), state.value)
    successor = claimed(fence=2)
    successor.restore(first.entries, tokenizer, [5])
    assert successor.ending == Finished(state)
    assert successor.entries == first.entries


def test_a_successors_entries_follow_those_of_the_first(tokenizer: ModelTokenizer) -> None:
    journal = [JournalEntry(0, at, 20 + at, "", None, 1) for at in range(3)]
    successor = claimed(fence=2)
    successor.restore(journal, tokenizer, [5])
    assert successor.choices[0].token_ids == [20, 21, 22]
    successor.take([delta(23)])
    assert successor.entries[:3] == journal
    assert (successor.entries[3].index, successor.entries[3].fence) == (3, 2)


def test_a_job_lost_before_its_journal_was_read_has_no_output() -> None:
    job = claimed()
    assert not job.restored
    assert job.end(Lost())
    assert job.entries == []
