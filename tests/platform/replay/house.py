"""Two versions on a real PostgreSQL, and what workers do by hand: jobs are answered, answers are scored."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from penstock.auth.models import Tenant
from penstock.auth.system_tenant import SYSTEM_TENANT_ID
from penstock.db import Database
from penstock.jobs import lease
from penstock.jobs.journal import JournalEntry, PromptToken
from penstock.jobs.lease import Claim, Finish, Held
from penstock.jobs.models import Job
from penstock.jobs.states import JobState
from penstock.registry.models import Deployment
from penstock.replay.models import Comparison
from penstock.rollouts.models import Assignment, Rollout
from sqlalchemy import select

from tests.factories import make_deployment, make_tenant, make_worker, submit_job

PROMPT = [1, 2]
ANSWER = [5, 6, 7]
SURE: Mapping[int, float] = {5: 0.5, 6: 0.25, 7: 0.125}
"""How likely a version finds each token at every position of the answer."""
UNSURE: Mapping[int, float] = {6: 0.5, 5: 0.25, 7: 0.125}


@dataclass(frozen=True)
class House:
    """`champion` serves the model `tiny`, `candidate` is its other version."""

    database: Database
    tenant: Tenant
    champion: Deployment
    candidate: Deployment
    worker_id: str

    @classmethod
    def built(cls, database: Database, context_length: int = 256) -> "House":
        with database.transaction() as session:
            champion = make_deployment(session)
            candidate = make_deployment(session, version="2", champion=False)
            candidate.context_length = context_length
            worker = make_worker(session, champion)
            return cls(database, make_tenant(session), champion, candidate, worker.id)

    def answered(self, answer: Sequence[int] = ANSWER, state: JobState = JobState.SUCCEEDED) -> str:
        """A finished job of the champion, with these tokens."""
        with self.database.transaction() as session:
            job_id = submit_job(session, self.tenant).id
        claim = self.claim(self.champion)
        assert claim.job.id == job_id, "the internal jobs come last"
        self.finish(claim, answer, state)
        return job_id

    def sampled(self, rollout_id: str, **how: JobState) -> str:
        """The same, sampled for the rollout's shadow."""
        job_id = self.answered(**how)  # type: ignore[arg-type]  # only the state is ever given
        self.sample(rollout_id, job_id)
        return job_id

    def sample(self, rollout_id: str, job_id: str) -> None:
        """Have the rollout's shadow look at the job, whether its hash says so or not."""
        given = {"stage": "shadow", "step": 0, "arm": "champion", "share": 1.0, "unit": "job"}
        with self.database.transaction() as session:
            if session.get(Assignment, job_id) is None:
                session.add(Assignment(job_id=job_id, rollout_id=rollout_id, **given))

    def claim(self, deployment: Deployment) -> Claim:
        with self.database.transaction() as session:
            claim = lease.claim(session, worker_id=self.worker_id, deployment_id=deployment.id, lease_seconds=60)
        assert claim is not None, "nothing waits there"
        return claim

    def finish(self, claim: Claim, answer: Sequence[int], state: JobState = JobState.SUCCEEDED) -> None:
        entries = [JournalEntry(0, at, token, f"{token} ", None, claim.fence) for at, token in enumerate(answer)]
        entries.append(JournalEntry(0, len(answer), None, "", None, claim.fence, "stop"))
        error = {"code": "logits_not_finite", "message": "x"} if state is JobState.FAILED else None
        self._end(claim, Finish(state, entries, prompt_tokens=len(PROMPT), error=error))

    def score(
        self, deployment: Deployment, likely: Mapping[int, float] = SURE, prompt: Sequence[int] = tuple(PROMPT)
    ) -> Claim:
        """Score the answer that the deployment is to score next, as the engine would tell it."""
        claim = self.claim(deployment)
        self.told(claim, likely, prompt)
        return claim

    def told(self, claim: Claim, likely: Mapping[int, float], prompt: Sequence[int] = tuple(PROMPT)) -> None:
        """End a score so."""
        assert claim.job.kind == "score"
        assert claim.job.tenant_id == SYSTEM_TENANT_ID
        answer = claim.job.input["continuation_token_ids"]
        tops = tuple((token, math.log(p)) for token, p in sorted(likely.items(), key=lambda each: -each[1]))
        tokens = [PromptToken(token, None) for token in prompt]
        tokens += [PromptToken(token, math.log(likely[token]), tops) for token in answer]
        entry = JournalEntry(0, 0, None, "", None, claim.fence, prompt=tuple(tokens))
        end = JournalEntry(0, 0, None, "", None, claim.fence, "length")
        self._end(claim, Finish(JobState.SUCCEEDED, [entry, end], prompt_tokens=len(tokens)))

    def fail(self, deployment: Deployment) -> None:
        """The engine cannot do what waits next there."""
        self.finish(self.claim(deployment), [], JobState.FAILED)

    def _end(self, claim: Claim, result: Finish) -> None:
        with self.database.transaction() as session:
            lease.finish(session, Held(claim.job.id, claim.fence), result)

    def rollout(self, rollout_id: str) -> Rollout:
        with self.database.transaction() as session:
            return session.get_one(Rollout, rollout_id)

    def comparisons(self) -> list[Comparison]:
        with self.database.transaction() as session:
            return list(session.scalars(select(Comparison).order_by(Comparison.id)))

    def internal_jobs(self) -> list[Job]:
        with self.database.transaction() as session:
            return list(session.scalars(select(Job).where(Job.tenant_id == SYSTEM_TENANT_ID).order_by(Job.id)))
