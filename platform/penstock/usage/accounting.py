"""What a finished job consumed and costs, counted once over all its runs, in the transaction that ends it.

A run is charged when it finished the job or gave it back in order; then its device time counts but for what it
computed again. A run that crashed or lost its lease is the platform's loss: all of its time is counted as recomputed.
What failed, and what never reached the model, costs nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import Text, any_, literal, select, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Session

from penstock.auth.system_tenant import SYSTEM_TENANT_ID
from penstock.jobs.models import Job, JobRun
from penstock.jobs.states import JobState, RunOutcome
from penstock.usage.budgets import settle
from penstock.usage.spent import Spent
from penstock.usage.terms import Terms

CHARGED: Final = frozenset({RunOutcome.FINISHED.value, RunOutcome.HANDED_BACK.value})
_NO_RUN: Final = "no run was measured"
_RECORDED: Final = (
    "prompt_tokens", "cached_tokens", "output_tokens", "computed_tokens", "recomputed_tokens", "device_seconds",
    "recomputed_seconds", "joules", "cost",
)  # fmt: skip
_RECORD: Final = text(
    """
    INSERT INTO usage_entry (
        job_id, tenant_id, model_name, model_version, api_key_id, run_milliseconds, prompt_tokens, cached_tokens,
        output_tokens, computed_tokens, recomputed_tokens, device_seconds, recomputed_seconds, joules, cost, currency
    )
    SELECT job.id, job.tenant_id, job.model_name, job.model_version, job.api_key_id, (
            SELECT coalesce(round(sum(
                extract(epoch FROM coalesce(run.ended_at, clock_timestamp()) - run.started_at)
            ) * 1000), 0) FROM job_run AS run WHERE run.job_id = job.id
        ), used.prompt_tokens, used.cached_tokens, used.output_tokens, used.computed_tokens, used.recomputed_tokens,
        used.device_seconds, used.recomputed_seconds, used.joules, used.cost, used.currency
    FROM job JOIN unnest(
        CAST(:ids AS text[]), CAST(:prompt_tokens AS integer[]), CAST(:cached_tokens AS integer[]),
        CAST(:output_tokens AS integer[]), CAST(:computed_tokens AS bigint[]), CAST(:recomputed_tokens AS bigint[]),
        CAST(:device_seconds AS double precision[]), CAST(:recomputed_seconds AS double precision[]),
        CAST(:joules AS double precision[]), CAST(:cost AS numeric[]), CAST(:currencies AS text[])
    ) AS used (
        job_id, prompt_tokens, cached_tokens, output_tokens, computed_tokens, recomputed_tokens, device_seconds,
        recomputed_seconds, joules, cost, currency
    ) ON used.job_id = job.id
    WHERE job.tenant_id <> :unbilled
    """
)


@dataclass(frozen=True, slots=True)
class Tally:
    """A job's totals. `joules` is None where a run was not measured, and `energy_note` says why."""

    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    computed_tokens: int
    recomputed_tokens: int
    device_seconds: float
    recomputed_seconds: float
    joules: float | None
    energy_note: str | None
    terms: Terms | None
    cost: Decimal | None

    @property
    def account(self) -> dict[str, Any]:
        """What the job's row keeps of it beside its token counts."""
        return {
            "computed_tokens": self.computed_tokens,
            "recomputed_tokens": self.recomputed_tokens,
            "device_seconds": round(self.device_seconds, 6),
            "recomputed_seconds": round(self.recomputed_seconds, 6),
            "energy": {
                "joules": None if self.joules is None else round(self.joules, 3),
                "reason": self.energy_note,
            },
            "cost": self.cost_document,
        }

    @property
    def cost_document(self) -> dict[str, Any] | None:
        """The cost as documents show it; amounts are text, so that no reader rounds them."""
        if self.terms is None or self.cost is None:
            return None
        return {"amount": f"{self.cost:f}", "currency": self.terms.currency, "price": self.terms.price_id}


@dataclass(frozen=True, slots=True)
class _Run:
    """One run, as it is counted."""

    outcome: str
    spent: Spent

    @property
    def charged(self) -> bool:
        return self.outcome in CHARGED

    @property
    def recomputed_tokens(self) -> int:
        return self.spent.recomputed_tokens if self.charged else self.spent.computed_tokens

    @property
    def recomputed_seconds(self) -> float:
        return self.spent.recomputed_seconds if self.charged else self.spent.device_seconds


@dataclass(frozen=True, slots=True)
class Ended:
    """A job that ends in `state`, as it is counted. `tokens` are its prompt's and its output's.

    `last` is the run that ends with it: its fence, how it ended, and what it took (None is what its row says).
    `cached_tokens` hold where no run has told any. `runs` is how many it had.
    """

    job_id: str
    state: JobState
    tokens: tuple[int, int]
    terms: Mapping[str, Any] | None
    cached_tokens: int = 0
    last: tuple[int, RunOutcome, Spent | None] | None = None
    runs: int | None = None

    @property
    def told(self) -> Spent | None:
        """What its only run took, where its worker has told that: then no row needs to be read."""
        return self.last[2] if self.last is not None and self.runs == 1 else None


def tally_all(session: Session, ended: Sequence[Ended]) -> list[tuple[Tally, Spent]]:
    """Count all runs of each of the jobs; and what the last of them took."""
    rows = _run_rows(session, [job.job_id for job in ended if job.told is None])
    found = [[_told_run(job)] if job.told is not None else _runs(rows.get(job.job_id, ()), job.last) for job in ended]
    return [(_tally(job, runs), runs[-1].spent if runs else Spent()) for job, runs in zip(ended, found, strict=True)]


def tally_waiting(session: Session, job_id: str, state: JobState, output_tokens: int) -> Tally | None:
    """Count the runs of a job that ends in `state` while it waits; None when it never had one."""
    prompt, runs, terms = session.execute(select(Job.prompt_tokens, Job.runs, Job.terms).where(Job.id == job_id)).one()
    if not runs:
        return None
    ((tally, _),) = tally_all(session, [Ended(job_id, state, (prompt or 0, output_tokens), terms)])
    return tally


def close_waiting(session: Session, job: Job, tally: Tally | None) -> None:
    """As `record`, for a job that ended while it waited; one that never ran only frees its reservation."""
    if tally is not None:
        record(session, job, tally)
    else:
        release(session, job)


def record(session: Session, job: Job, tally: Tally) -> None:
    """Write the job's usage entry and settle its reservation. The entry's key makes a second time impossible."""
    record_all(session, [(job, tally)])


def record_all(session: Session, ended: Sequence[tuple[Job, Tally]]) -> None:
    """The same for many jobs. Reservations are settled in the order of tenants and currencies."""
    session.execute(
        _RECORD,
        {
            "unbilled": SYSTEM_TENANT_ID,
            "ids": [job.id for job, _ in ended],
            "currencies": [tally.terms.currency if tally.terms is not None else None for _, tally in ended],
            **{name: [getattr(tally, name) for _, tally in ended] for name in _RECORDED},
        },
    )
    settled: dict[tuple[str, str], tuple[Terms, Decimal]] = {}
    for job, tally in ended:
        if tally.terms is not None and tally.terms.reserved is not None:
            key = (job.tenant_id, tally.terms.currency)
            terms, cost = settled.get(key, (replace(tally.terms, reserved=Decimal(0)), Decimal(0)))
            reserved = (terms.reserved or Decimal(0)) + tally.terms.reserved
            settled[key] = (replace(terms, reserved=reserved), cost + (tally.cost or Decimal(0)))
    for (tenant_id, _), (terms, cost) in sorted(settled.items()):
        settle(session, tenant_id, terms, cost)


def release(session: Session, job: Job, cost: Decimal = Decimal(0)) -> None:
    """Settle the reservation of a job that has ended: what it cost is spent, the rest is free again."""
    if job.terms is not None:
        settle(session, job.tenant_id, Terms.from_document(job.terms), cost)


def _run_rows(session: Session, job_ids: Sequence[str]) -> dict[str, list[JobRun]]:
    """All runs of the jobs, each job's in their order."""
    rows: dict[str, list[JobRun]] = {}
    if job_ids:
        wanted = select(JobRun).where(JobRun.job_id == any_(literal(list(job_ids), ARRAY(Text))))
        for row in session.scalars(wanted.order_by(JobRun.job_id, JobRun.fence)):
            rows.setdefault(row.job_id, []).append(row)
    return rows


def _runs(rows: Sequence[JobRun], last: tuple[int, RunOutcome, Spent | None] | None) -> list[_Run]:
    fence, outcome, spent = last or (None, None, None)
    return [
        _Run(outcome.value, spent or row.spent)
        if outcome is not None and row.fence == fence
        else _Run(row.outcome or "", row.spent)
        for row in rows
    ]


def _told_run(job: Ended) -> _Run:
    assert job.last is not None
    assert job.told is not None
    return _Run(job.last[1].value, job.told)


def _tally(job: Ended, runs: Sequence[_Run]) -> Tally:
    told = next((run.spent.cached_tokens for run in runs if run.spent.cached_tokens is not None), job.cached_tokens)
    (prompt, output), cached = job.tokens, min(told, job.tokens[0])
    charged = sum(run.spent.device_seconds - run.recomputed_seconds for run in runs if run.charged)
    terms = Terms.from_document(job.terms) if job.terms is not None else None
    joules, note = _energy(runs)
    computed = sum(run.spent.computed_tokens for run in runs)
    nothing = job.state is JobState.FAILED or not (computed or output)
    return Tally(
        prompt_tokens=prompt,
        cached_tokens=cached,
        output_tokens=output,
        computed_tokens=computed,
        recomputed_tokens=sum(run.recomputed_tokens for run in runs),
        device_seconds=charged,
        recomputed_seconds=sum(run.recomputed_seconds for run in runs),
        joules=joules,
        energy_note=note,
        terms=terms,
        cost=Decimal(0) if terms and nothing else _cost(terms, prompt, cached, output, charged),
    )


def _energy(runs: Sequence[_Run]) -> tuple[float | None, str | None]:
    """All runs' energy; None, with the reason, where one that computed was not measured."""
    ran = [run.spent for run in runs if run.spent.computed_tokens]
    unmeasured = next((spent for spent in ran if spent.joules is None), None)
    if unmeasured is not None:
        return None, unmeasured.energy_note
    return (sum(spent.joules or 0.0 for spent in ran), None) if ran else (None, _NO_RUN)


def _cost(terms: Terms | None, prompt: int, cached: int, output: int, device_seconds: float) -> Decimal | None:
    if terms is None:
        return None
    return terms.cost(prompt_tokens=prompt, cached_tokens=cached, output_tokens=output, device_seconds=device_seconds)
