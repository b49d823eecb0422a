"""A job on its holder: how runs end, and what a successor reads from the journal."""

import math
import time
from array import array
from pathlib import Path
from typing import Any

import pytest
from penstock.jobs.journal import JournalEntry, PromptToken
from penstock.jobs.lease import Claim
from penstock.jobs.models import Job
from penstock.jobs.states import JobState, RunOutcome
from penstock.registry.tokenizer import ModelTokenizer
from penstock_worker.messages import Delta, PromptScores
from penstock_worker.requests import request_of
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


def several(*, fence: int = 1, **params: Any) -> RunningJob:
    now = time.monotonic()
    row = Job(id="job_a", tenant_id="ten", params=params, seed=1, priority=0, job_class=0)
    return RunningJob(Claim(row, fence, []), claimed_at=now, lease_until=now + 60)


def said(choice: int, token_id: int, logprob: float = -1.0, finish_reason: str | None = None) -> Delta:
    return Delta("job_a.1", choice, token_id, logprob, finish_reason)


def text_of(tokenizer: ModelTokenizer, token_id: int) -> str:
    return tokenizer.detokenizer().push(token_id)


class TestChoices:
    """Several answers of one job."""

    def test_the_run_ends_with_the_last_of_them(self, tokenizer: ModelTokenizer) -> None:
        job = several(n=2)
        job.restore([], tokenizer, [5])
        job.take([said(0, 40), said(1, 41)])
        job.take([said(0, 42, finish_reason="length"), said(1, 43)])
        assert job.ending is None
        job.take([said(1, 44, finish_reason="length")])
        assert job.ending == Finished(JobState.SUCCEEDED)
        assert [(entry.choice, entry.index) for entry in job.entries] == [
            (0, 0), (1, 0), (0, 1), (0, 2), (1, 1), (1, 2), (1, 3),
        ]  # fmt: skip

    def test_one_that_ends_at_a_stop_string_is_named_so_that_the_engine_hears_of_it(
        self, tokenizer: ModelTokenizer
    ) -> None:
        job = several(n=2, stop=[text_of(tokenizer, 40)])
        job.restore([], tokenizer, [5])
        assert job.take([said(0, 41), said(1, 41)]) == []
        assert job.take([said(0, 40), said(1, 42)]) == [0]
        assert job.take([said(0, 43), said(1, 43)]) == []  # it went on in the engine meanwhile: nobody hears of that
        assert [entry.token_id for entry in job.entries if entry.choice == 0] == [41, 40, None]
        assert job.ending is None

    def test_one_that_the_engine_ends_with_the_stop_string_is_not_named(self, tokenizer: ModelTokenizer) -> None:
        job = several(n=1, stop=[text_of(tokenizer, 40)])
        job.restore([], tokenizer, [5])
        assert job.take([said(0, 40, finish_reason="length")]) == []
        assert job.entries[-1].finish_reason == "stop"

    def test_a_successor_lets_those_rest_that_have_ended(self, tokenizer: ModelTokenizer) -> None:
        first = several(n=3, stop=[text_of(tokenizer, 40)])
        first.restore([], tokenizer, [5])
        first.take([said(choice, 41) for choice in range(3)])
        first.take([said(0, 42), said(1, 40), said(2, 42, finish_reason="length")])
        successor = several(fence=2, n=3, stop=[text_of(tokenizer, 40)])
        successor.restore(first.entries, tokenizer, [5])
        request = request_of(successor)
        assert request.closed == [1, 2]
        assert request.output_ids[0] == [41, 42]
        assert request.places == 1
        successor.take([said(0, 43, finish_reason="length")])
        assert successor.ending == Finished(JobState.SUCCEEDED)

    def test_one_that_the_engine_finds_complete_is_closed(self, tokenizer: ModelTokenizer) -> None:
        job = several(n=2)
        job.restore([], tokenizer, [5])
        job.close_choice(1, "length")
        assert job.ending is None
        job.close_choice(0, "stop")
        assert [(entry.choice, entry.finish_reason) for entry in job.entries] == [(1, "length"), (0, "stop")]
        assert job.ending == Finished(JobState.SUCCEEDED)

    def test_a_cancel_ends_each(self, tokenizer: ModelTokenizer) -> None:
        job = several(n=2)
        job.restore([], tokenizer, [5])
        job.take([said(0, 40, finish_reason="length"), said(1, 41)])
        job.end(Finished(JobState.CANCELLED), "cancelled")
        assert [entry.finish_reason for entry in job.entries if entry.token_id is None] == ["length", "cancelled"]


class TestCandidates:
    """More answers than are told."""

    def test_nothing_is_told_before_all_have_ended_and_then_all_at_once(self, tokenizer: ModelTokenizer) -> None:
        job = several(n=1, best_of=3)
        job.restore([], tokenizer, [5])
        assert request_of(job).sampling.n == 3
        assert request_of(job).sampling.logprobs == 0
        job.take([said(0, 40, -3.0, "length"), said(1, 41, -0.5), said(2, 42, -2.0, "length")])
        assert job.entries == []
        assert job.progress.entries == []
        job.take([said(1, 43, -0.5, "length")])
        assert [(entry.choice, entry.token_id, entry.logprob) for entry in job.entries] == [
            (0, 41, None), (0, 43, None), (0, None, None),
        ]  # fmt: skip
        assert job.untold_tokens == 2
        assert job.ending == Finished(JobState.SUCCEEDED)

    def test_a_candidate_is_judged_by_what_comes_before_its_stop_string(self, tokenizer: ModelTokenizer) -> None:
        job = several(n=1, best_of=2, stop=[text_of(tokenizer, 40)], logprobs=True)
        job.restore([], tokenizer, [5])
        assert job.take([said(0, 40, -1.0), said(1, 41, -1.5)]) == [0]
        job.take([said(0, 44, -9.0), said(1, 42, -1.5, "length")])
        assert [(entry.token_id, entry.logprob) for entry in job.entries] == [(40, -1.0), (None, None)]

    def test_a_successor_of_one_that_told_ends_it_as_it_is(self, tokenizer: ModelTokenizer) -> None:
        first = several(n=1, best_of=2)
        first.restore([], tokenizer, [5])
        first.take([said(0, 40, finish_reason="length"), said(1, 41, -2.0, "length")])
        successor = several(fence=2, n=1, best_of=2)
        successor.restore(first.entries, tokenizer, [5])
        assert successor.ending == Finished(JobState.SUCCEEDED)
        assert successor.entries == first.entries

    def test_a_cancel_tells_the_likeliest_so_far(self, tokenizer: ModelTokenizer) -> None:
        job = several(n=1, best_of=2)
        job.restore([], tokenizer, [5])
        job.take([said(0, 40, -3.0), said(1, 41, -1.0)])
        job.end(Finished(JobState.CANCELLED), "cancelled")
        assert [(entry.token_id, entry.finish_reason) for entry in job.entries] == [(41, None), (None, "cancelled")]


def floats(*numbers: float) -> bytes:
    return array("f", numbers).tobytes()


def whole(*numbers: int) -> bytes:
    return array("i", numbers).tobytes()


class TestPromptScores:
    """Log probabilities of the prompt's tokens."""

    def test_they_go_before_every_token_and_are_asked_for_once(self, tokenizer: ModelTokenizer) -> None:
        job = several(n=1, prompt_logprobs=1)
        job.restore([], tokenizer, [5, 6, 7])
        assert request_of(job).sampling.prompt_logprobs == 1
        job.take_prompt(PromptScores("job_a.1", 1, floats(-1.0, -math.inf), whole(6, 9), floats(-1.0, -0.5)))
        assert job.entries[0].prompt == (
            PromptToken(5, None), PromptToken(6, -1.0, ((6, -1.0),)), PromptToken(7, -9999.0, ((9, -0.5),)),
        )  # fmt: skip
        successor = several(fence=2, n=1, prompt_logprobs=1)
        successor.restore(job.entries, tokenizer, [5, 6, 7])
        assert request_of(successor).sampling.prompt_logprobs is None
        assert successor.choices[0].token_ids == []

    def test_a_score_ends_with_them_and_hears_no_token(self, tokenizer: ModelTokenizer) -> None:
        job = several(n=1)
        job.job.kind, job.job.input = "score", {"token_ids": [5, 6], "continuation_token_ids": [7]}
        job.restore([], tokenizer, [5, 6, 7])
        request = request_of(job)
        assert (request.scored_from, request.sampling.prompt_logprobs) == (2, 0)
        assert job.take([said(0, 40, -3.0)]) == []
        assert (job.entries, job.ending) == ([], None)
        job.take_prompt(PromptScores("job_a.1", 2, floats(-1.5), b"", b""))
        assert job.ending == Finished(JobState.SUCCEEDED)
        assert [token.logprob for token in job.entries[0].prompt or ()] == [None, None, -1.5]
        assert [(entry.token_id, entry.finish_reason) for entry in job.entries[1:]] == [(None, "length")]

        for had in (1, 2):  # the worker died after so many entries
            successor = several(fence=2, n=1)
            successor.job.kind, successor.job.input = "score", job.job.input
            successor.restore(job.entries[:had], tokenizer, [5, 6, 7])
            assert successor.ending == Finished(JobState.SUCCEEDED)
            assert len(successor.entries) == 2

    def test_a_prompt_of_one_token_has_none_to_wait_for(self, tokenizer: ModelTokenizer) -> None:
        job = several(n=1, prompt_logprobs=0)
        job.restore([], tokenizer, [5])
        assert [entry.prompt for entry in job.entries] == [(PromptToken(5, None),)]


def test_whose_share_how_long_and_how_much_go_with_the_request(tokenizer: ModelTokenizer) -> None:
    row = Job(id="job_a", tenant_id="ten", params={}, seed=1, priority=3, job_class=1, token_budget=70)
    now = time.monotonic()
    job = RunningJob(Claim(row, 1, [], weight=2.5, seconds_left=30.0), claimed_at=now, lease_until=now + 60)
    job.restore([], tokenizer, [5])
    request = request_of(job)
    assert (request.tenant, request.weight, request.token_budget) == ("ten", 2.5, 70)
    assert (request.priority, request.request_class) == (3, "batch")
    assert request.deadline == pytest.approx(time.time() + 30, abs=5)
