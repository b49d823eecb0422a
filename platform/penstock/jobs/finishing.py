"""Ends of jobs: any number of them in one transaction, each exactly once, each write fenced. Nothing here commits.

Each statement is for all of them: state and output, journals, runs, usage, events and webhooks, counters. A job whose
lease was lost is left out, and harms none of the others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from sqlalchemy import Row, select, text
from sqlalchemy.orm import Session

from penstock.dead_letters.burial import bury_if_deadly
from penstock.fairness.counters import Paid, cost_of, pay
from penstock.jobs.events import EventType, Happening, record
from penstock.jobs.holding import Finish, Held, computed_input, lost, store_journals
from penstock.jobs.models import Job
from penstock.jobs.output import assemble_output, count_tokens
from penstock.usage import accounting
from penstock.usage.accounting import Ended, Tally
from penstock.usage.spent import Spent

# All rows of jobs come first, in the order of their ids (`penstock.jobs.locks`); the fence is looked at by each write.
_LOCK: Final = text(
    """
    SELECT job.id, job.runs, job.terms, job.charged FROM job
    WHERE job.id = ANY(CAST(:ids AS text[])) ORDER BY job.id FOR UPDATE
    """
)

_END: Final = select(Job).from_statement(
    text(
        """
        UPDATE job SET
            state = ended.state, lease_holder = NULL, lease_expires_at = NULL, last_event = job.last_event + 1,
            output = CAST(ended.output AS jsonb), error = CAST(ended.error AS jsonb),
            account = CAST(ended.account AS jsonb), prompt_tokens = ended.prompt_tokens,
            cached_tokens = ended.cached_tokens, output_tokens = ended.output_tokens,
            charged = greatest(job.charged, ended.cost), finished_at = clock_timestamp(),
            first_token_at = coalesce(
                job.first_token_at, run.started_at + make_interval(secs => ended.first_token_seconds)
            )
        FROM unnest(
            CAST(:ids AS text[]), CAST(:fences AS bigint[]), CAST(:states AS text[]), CAST(:outputs AS text[]),
            CAST(:errors AS text[]), CAST(:accounts AS text[]), CAST(:prompt_tokens AS integer[]),
            CAST(:cached_tokens AS integer[]), CAST(:output_tokens AS integer[]), CAST(:costs AS bigint[]),
            CAST(:first_token_seconds AS double precision[])
        ) AS ended (
            id, fence, state, output, error, account, prompt_tokens, cached_tokens, output_tokens, cost,
            first_token_seconds
        )
        LEFT JOIN job_run AS run ON run.job_id = ended.id AND run.fence = ended.fence
        WHERE job.id = ended.id AND job.fence = ended.fence AND job.state = 'running'
        RETURNING job.*
        """
    )
)

_END_RUNS: Final = text(
    """
    UPDATE job_run SET
        ended_at = clock_timestamp(), outcome = took.outcome, cached_tokens = took.cached_tokens,
        computed_tokens = took.computed_tokens, recomputed_tokens = took.recomputed_tokens,
        device_seconds = took.device_seconds, recomputed_seconds = took.recomputed_seconds, joules = took.joules,
        energy_note = took.energy_note, queue_seconds = took.queue_seconds, prefill_seconds = took.prefill_seconds,
        decode_seconds = took.decode_seconds
    FROM unnest(
        CAST(:ids AS text[]), CAST(:fences AS bigint[]), CAST(:outcomes AS text[]), CAST(:cached_tokens AS integer[]),
        CAST(:computed_tokens AS bigint[]), CAST(:recomputed_tokens AS bigint[]),
        CAST(:device_seconds AS double precision[]), CAST(:recomputed_seconds AS double precision[]),
        CAST(:joules AS double precision[]), CAST(:energy_note AS text[]), CAST(:queue_seconds AS double precision[]),
        CAST(:prefill_seconds AS double precision[]), CAST(:decode_seconds AS double precision[])
    ) AS took (
        job_id, fence, outcome, cached_tokens, computed_tokens, recomputed_tokens, device_seconds, recomputed_seconds,
        joules, energy_note, queue_seconds, prefill_seconds, decode_seconds
    )
    WHERE job_run.job_id = took.job_id AND job_run.fence = took.fence AND job_run.ended_at IS NULL
    """
)


@dataclass(frozen=True, slots=True)
class _Counted:
    """A job that is to end, with all that follows from how. `charged` is what its tenant was charged for it before."""

    held: Held
    result: Finish
    tally: Tally
    spent: Spent
    charged: int

    @property
    def cost(self) -> int:
        """In the tenant's counter, over all runs."""
        tally = self.tally
        computed = computed_input(tally.prompt_tokens, tally.cached_tokens, tally.computed_tokens, tally.output_tokens)
        return cost_of(computed_input=computed, output=tally.output_tokens)

    @property
    def output(self) -> dict[str, Any]:
        return assemble_output(self.result.entries) if self.result.output is None else self.result.output


def finish(session: Session, held: Held, result: Finish) -> Job:
    """End the job, exactly once: state, output, journal, usage, event and webhooks in this one transaction.

    Raises `LeaseLost`.
    """
    (job,) = finish_all(session, [(held, result)])
    if job is None:
        raise lost(held)
    return job


def finish_all(session: Session, results: Sequence[tuple[Held, Finish]]) -> list[Job | None]:
    """End jobs as `finish` ends one. None stands in the place of one whose lease is lost: it was left as it is."""
    counted = _count(session, results)
    rows = session.scalars(_END, _columns(counted), execution_options={"populate_existing": True})
    jobs = {(job.id, job.fence): job for job in rows}
    ended = [(jobs[key], each) for each in counted if (key := (each.held.job_id, each.held.fence)) in jobs]
    if ended:
        _write_down(session, ended)
    return [jobs.get((held.job_id, held.fence)) for held, _ in results]


def _count(session: Session, results: Sequence[tuple[Held, Finish]]) -> list[_Counted]:
    """Lock the jobs, and count what each took in all of its runs."""
    rows: Mapping[str, Row[Any]] = {
        row.id: row for row in session.execute(_LOCK, {"ids": [held.job_id for held, _ in results]})
    }
    found = [(held, result, rows[held.job_id]) for held, result in results if held.job_id in rows]
    ended = [_ended(held, result, row) for held, result, row in found]
    tallies = accounting.tally_all(session, ended)
    return [
        _Counted(held, result, tally, spent, row.charged)
        for (held, result, row), (tally, spent) in zip(found, tallies, strict=True)
    ]


def _ended(held: Held, result: Finish, row: Row[Any]) -> Ended:
    output_tokens = count_tokens(result.entries) + result.untold_tokens
    return Ended(
        held.job_id,
        result.state,
        tokens=(result.prompt_tokens, output_tokens),
        cached_tokens=result.cached_tokens,
        terms=row.terms,
        last=(held.fence, result.outcome, result.spent),
        runs=row.runs,
    )


def _columns(counted: Sequence[_Counted]) -> dict[str, list[Any]]:
    results = [each.result for each in counted]
    tallies = [each.tally for each in counted]
    return {
        "ids": [each.held.job_id for each in counted],
        "fences": [each.held.fence for each in counted],
        "states": [result.state.value for result in results],
        "outputs": [_json(each.output) for each in counted],
        "errors": [None if result.error is None else _json(result.error) for result in results],
        "accounts": [_json(tally.account) for tally in tallies],
        "prompt_tokens": [tally.prompt_tokens for tally in tallies],
        "cached_tokens": [tally.cached_tokens for tally in tallies],
        "output_tokens": [tally.output_tokens for tally in tallies],
        "costs": [each.cost for each in counted],
        "first_token_seconds": [result.first_token_seconds for result in results],
    }


def _write_down(session: Session, ended: Sequence[tuple[Job, _Counted]]) -> None:
    """All that follows from the ends, counters last: their rows are the last that a transaction locks."""
    store_journals(session, [(each.held, each.result.entries) for _, each in ended])
    _end_runs(session, [each for _, each in ended])
    accounting.record_all(session, [(job, each.tally) for job, each in ended])
    for job, _ in ended:
        bury_if_deadly(session, job)
    record(session, [Happening(job, EventType(f"job.{job.state}"), _data(job, each.result)) for job, each in ended])
    pay(session, [Paid(job.tenant_id, job.deployment_id, job.charged - each.charged) for job, each in ended])


def _end_runs(session: Session, ended: Sequence[_Counted]) -> None:
    session.execute(
        _END_RUNS,
        {
            "ids": [each.held.job_id for each in ended],
            "fences": [each.held.fence for each in ended],
            "outcomes": [each.result.outcome.value for each in ended],
            **{name: [getattr(each.spent, name) for each in ended] for name in Spent.__slots__},
        },
    )


def _data(job: Job, result: Finish) -> dict[str, Any]:
    data = {"output_tokens": job.output_tokens} | result.data
    return data | {"error": result.error} if result.error is not None else data


def _json(document: dict[str, Any]) -> str:
    return msgspec.json.encode(document).decode()
