"""The counters and the order of claims against a plain model of them, over random sequences of what can happen."""

from dataclasses import dataclass, field
from itertools import count
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from penstock.db import Database
from penstock.fairness.models import FairShare
from penstock.jobs import lease
from penstock.jobs import services as jobs
from penstock.jobs.journal import JournalEntry
from penstock.jobs.states import JobState, RunOutcome
from sqlalchemy import select

from tests.factories import make_deployment, make_tenant, submit_job

WEIGHTS = (1.0, 2.0, 0.5)
MOST_GENERATED = 12
_names = count()


@dataclass
class ModelJob:
    """A job as the model sees it. `number` is its age."""

    number: int
    tenant: str
    job_class: int
    priority: int
    prompt: int
    state: str = "queued"
    generated: int = 0
    charged: int = 0


@dataclass
class Model:
    """Virtual token counters, as one reads of them."""

    weights: dict[str, float]
    counters: dict[str, float] = field(default_factory=dict)
    last_served: list[str] = field(default_factory=list)
    jobs: dict[str, ModelJob] = field(default_factory=dict)

    def active(self) -> set[str]:
        return {job.tenant for job in self.jobs.values() if job.state in ("queued", "running")}

    def submit(self, job_id: str, job: ModelJob) -> None:
        others = self.active()
        self.jobs[job_id] = job
        if job.tenant in others:
            return
        idle_floor = self.counters[self.last_served[-1]] if self.last_served else 0.0
        floor = min((self.counters[other] for other in others), default=idle_floor)
        if job.tenant not in self.counters:
            self.last_served.append(job.tenant)
        self.counters[job.tenant] = max(self.counters.get(job.tenant, 0.0), floor)

    def next(self) -> str | None:
        pledged = dict.fromkeys(self.weights, 0)
        for job in self.jobs.values():
            if job.state == "running" and not job.charged:
                pledged[job.tenant] += job.prompt
        level = {tenant: charged + pledged[tenant] / self.weights[tenant] for tenant, charged in self.counters.items()}
        waiting = [(job_id, job) for job_id, job in self.jobs.items() if job.state == "queued"]
        turns = [
            ((job.job_class, level[job.tenant], job.tenant, -job.priority, job.number), job_id)
            for job_id, job in waiting
        ]
        return min(turns)[1] if turns else None

    def charge(self, totals: dict[str, int]) -> None:
        """Charge jobs up to these totals, at one moment."""
        due: dict[str, int] = {}
        for job_id, total in totals.items():
            job = self.jobs[job_id]
            if total > job.charged:
                due[job.tenant] = due.get(job.tenant, 0) + total - job.charged
                job.charged = total
        for tenant in sorted(due):
            self.counters[tenant] += due[tenant] / self.weights[tenant]
            self.last_served.append(tenant)


class Fairness(RuleBasedStateMachine):
    """Every step is taken in PostgreSQL and in the model; who is claimed and what is charged must agree."""

    database: Database

    def __init__(self) -> None:
        super().__init__()
        self.numbers = count()
        self.model_name = f"model-{next(_names)}"
        with self.database.transaction() as session:
            self.deployment = make_deployment(session, self.model_name)
            self.tenants = [make_tenant(session) for _ in WEIGHTS]
            for tenant, weight in zip(self.tenants, WEIGHTS, strict=True):
                tenant.weight = weight
        self.model = Model({tenant.id: tenant.weight for tenant in self.tenants})
        self.claims: dict[str, lease.Held] = {}
        self.lost: list[lease.Held] = []

    @rule(who=st.integers(0, 2), batch=st.booleans(), priority=st.integers(0, 1), prompt=st.integers(1, 30))
    def submit(self, who: int, batch: bool, priority: int, prompt: int) -> None:
        tenant = self.tenants[who]
        body: dict[str, Any] = {
            "model": self.model_name,
            "input": {"token_ids": [7] * prompt},
            "class": "batch" if batch else "interactive",
            "priority": priority,
        }
        with self.database.transaction() as session:
            job_id = submit_job(session, tenant, **body).id
        self.model.submit(job_id, ModelJob(next(self.numbers), tenant.id, int(batch), priority, prompt))

    @rule()
    def claim(self) -> None:
        with self.database.transaction() as session:
            claim = lease.claim(session, worker_id="wrk_x", deployment_id=self.deployment.id, lease_seconds=30)
        expected = self.model.next()
        assert (claim.job.id if claim else None) == expected
        if claim is not None:
            self.claims[claim.job.id] = lease.Held(claim.job.id, claim.fence)
            self.model.jobs[claim.job.id].state = "running"

    @precondition(lambda self: self.claims)
    @rule(more=st.lists(st.integers(0, MOST_GENERATED), min_size=6, max_size=6))
    def checkpoint(self, more: list[int]) -> None:
        """All running jobs go on by some tokens, and are charged in one statement."""
        totals = {}
        for held, generated in zip(self.claims.values(), more * len(self.claims), strict=False):
            self.model.jobs[held.job_id].generated += generated
            totals[held.job_id] = self._cost(held.job_id)
        progress = [lease.Progress(held, self._entries(held), 0.1) for held in self.claims.values()]
        with self.database.transaction() as session:
            lease.checkpoint(session, progress)
        self.model.charge(totals)

    @precondition(lambda self: self.claims)
    @rule(generated=st.integers(0, MOST_GENERATED), data=st.data())
    def finish(self, generated: int, data: st.DataObject) -> None:
        held = self._take(data)
        job = self.model.jobs[held.job_id]
        job.generated += generated
        result = lease.Finish(JobState.SUCCEEDED, self._entries(held), job.prompt)
        with self.database.transaction() as session:
            lease.finish(session, held, result)
        job.state = "succeeded"
        self.model.charge({held.job_id: self._cost(held.job_id)})

    @precondition(lambda self: self.claims)
    @rule(lost_tokens=st.integers(0, MOST_GENERATED), data=st.data())
    def crash(self, lost_tokens: int, data: st.DataObject) -> None:
        """The worker dies; what it generated last may be gone with it, and is generated again."""
        held = self._take(data)
        with self.database.transaction() as session:
            lease.hand_back(session, held, RunOutcome.LEASE_LOST, "by the model", max_own_crashes=3)
        job = self.model.jobs[held.job_id]
        job.state, job.generated = "queued", max(job.generated - lost_tokens, 0)
        self.lost.append(held)

    @precondition(lambda self: self.lost)
    @rule(data=st.data())
    def write_from_the_dead(self, data: st.DataObject) -> None:
        """A holder that lost its lease tries to charge."""
        held = data.draw(st.sampled_from(self.lost))
        with self.database.transaction() as session:
            lease.checkpoint(session, [lease.Progress(held, _tokens(1000), 0.1)])

    @precondition(lambda self: any(job.state == "queued" for job in self.model.jobs.values()))
    @rule(data=st.data())
    def cancel_waiting(self, data: st.DataObject) -> None:
        waiting = [job_id for job_id, job in self.model.jobs.items() if job.state == "queued"]
        job_id = data.draw(st.sampled_from(waiting))
        with self.database.transaction() as session:
            jobs.cancel(session, self.model.jobs[job_id].tenant, job_id)
        self.model.jobs[job_id].state = "cancelled"

    @invariant()
    def counters_agree(self) -> None:
        with self.database.transaction() as session:
            kept = select(FairShare.tenant_id, FairShare.charged).where(FairShare.deployment_id == self.deployment.id)
            assert dict(session.execute(kept).all()) == self.model.counters

    def _take(self, data: st.DataObject) -> lease.Held:
        return self.claims.pop(data.draw(st.sampled_from(sorted(self.claims))))

    def _cost(self, job_id: str) -> int:
        job = self.model.jobs[job_id]
        return job.prompt + 2 * job.generated if job.generated else 0

    def _entries(self, held: lease.Held) -> list[JournalEntry]:
        return _tokens(self.model.jobs[held.job_id].generated)


def _tokens(generated: int) -> list[JournalEntry]:
    return [JournalEntry(0, index, index, "x", None, 1) for index in range(generated)]


def test_postgresql_does_as_the_model_does(database: Database) -> None:
    Fairness.database = database
    run_state_machine_as_test(
        Fairness, settings=settings(max_examples=12, stateful_step_count=40, deadline=None, derandomize=True)
    )
