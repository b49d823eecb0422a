"""What a finished job consumed and costs, counted once over all its runs, in the transaction that ends it.

A run is charged when it finished the job or gave it back in order; then its device time counts but for what it
computed again. A run that crashed or lost its lease is the platform's loss: all of its time is counted as recomputed.
What failed, and what never reached the model, costs nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session

from penstock.jobs.models import Job, JobRun
from penstock.jobs.states import JobState, RunOutcome
from penstock.usage.budgets import settle
from penstock.usage.models import UsageEntry
from penstock.usage.spent import Spent
from penstock.usage.terms import Terms

CHARGED: Final = frozenset({RunOutcome.FINISHED.value, RunOutcome.HANDED_BACK.value})
_NO_RUN: Final = "no run was measured"


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


def tally(
    session: Session,
    job_id: str,
    state: JobState,
    *,
    tokens: tuple[int, int],
    cached_tokens: int = 0,
    last: tuple[int, RunOutcome, Spent | None] | None = None,
) -> Tally:
    """Count all runs of a job that ends in `state`. `tokens` are its prompt's and its output's.

    `last` is the run that ends with it: its fence, how it ended, and what it took (None is what its row says).
    `cached_tokens` hold where no run has told any.
    """
    runs = _runs(session, job_id, last)
    found = next((run.spent.cached_tokens for run in runs if run.spent.cached_tokens is not None), cached_tokens)
    prompt, output = tokens
    charged = sum(run.spent.device_seconds - run.recomputed_seconds for run in runs if run.charged)
    document = session.scalar(select(Job.terms).where(Job.id == job_id))
    terms = Terms.from_document(document) if document is not None else None
    joules, note = _energy(runs)
    computed = sum(run.spent.computed_tokens for run in runs)
    nothing = state is JobState.FAILED or not (computed or output)
    return Tally(
        prompt_tokens=prompt,
        cached_tokens=min(found, prompt),
        output_tokens=output,
        computed_tokens=computed,
        recomputed_tokens=sum(run.recomputed_tokens for run in runs),
        device_seconds=charged,
        recomputed_seconds=sum(run.recomputed_seconds for run in runs),
        joules=joules,
        energy_note=note,
        terms=terms,
        cost=Decimal(0) if terms and nothing else _cost(terms, prompt, min(found, prompt), output, charged),
    )


def tally_waiting(session: Session, job_id: str, state: JobState, output_tokens: int) -> Tally | None:
    """Count the runs of a job that ends in `state` while it waits; None when it never had one."""
    prompt, runs = session.execute(select(Job.prompt_tokens, Job.runs).where(Job.id == job_id)).one()
    return tally(session, job_id, state, tokens=(prompt or 0, output_tokens)) if runs else None


def close_waiting(session: Session, job: Job, tally: Tally | None) -> None:
    """As `record`, for a job that ended while it waited; one that never ran only frees its reservation."""
    if tally is not None:
        record(session, job, tally)
    else:
        release(session, job)


def record(session: Session, job: Job, tally: Tally) -> None:
    """Write the job's usage entry and settle its reservation. The entry's key makes a second time impossible."""
    milliseconds = func.extract("epoch", func.coalesce(JobRun.ended_at, func.clock_timestamp()) - JobRun.started_at)
    lasted = session.scalar(select(func.sum(milliseconds) * 1000).where(JobRun.job_id == job.id))
    session.execute(
        insert(UsageEntry).values(
            job_id=job.id,
            tenant_id=job.tenant_id,
            model_name=job.model_name,
            model_version=job.model_version,
            api_key_id=job.api_key_id,
            prompt_tokens=tally.prompt_tokens,
            cached_tokens=tally.cached_tokens,
            output_tokens=tally.output_tokens,
            computed_tokens=tally.computed_tokens,
            recomputed_tokens=tally.recomputed_tokens,
            run_milliseconds=round(lasted or 0),
            device_seconds=tally.device_seconds,
            recomputed_seconds=tally.recomputed_seconds,
            joules=tally.joules,
            cost=tally.cost,
            currency=tally.terms.currency if tally.terms is not None else None,
        )
    )
    release(session, job, tally.cost or Decimal(0))


def release(session: Session, job: Job, cost: Decimal = Decimal(0)) -> None:
    """Settle the reservation of a job that has ended: what it cost is spent, the rest is free again."""
    if job.terms is not None:
        settle(session, job.tenant_id, Terms.from_document(job.terms), cost)


def _runs(session: Session, job_id: str, last: tuple[int, RunOutcome, Spent | None] | None) -> list[_Run]:
    rows = session.scalars(select(JobRun).where(JobRun.job_id == job_id).order_by(JobRun.fence)).all()
    fence, outcome, spent = last or (None, None, None)
    return [
        _Run(outcome.value, spent or row.spent)
        if outcome is not None and row.fence == fence
        else _Run(row.outcome or "", row.spent)
        for row in rows
    ]


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
