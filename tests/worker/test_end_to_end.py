"""A worker process serves real jobs with a real engine."""

from penstock.jobs.journal import Journal
from penstock.registry.models import Deployment
from redis import Redis
from tests.worker.conftest import Jobs, StartWorker


def test_a_job_runs_from_its_doorbell_to_its_result(
    deployment: Deployment, jobs: Jobs, start_worker: StartWorker, redis: Redis
) -> None:
    start_worker()
    job = jobs.finished(jobs.submit("Invoice 12", params={"temperature": 0.0, "max_tokens": 12, "ignore_eos": True}))
    assert job.state == "succeeded"
    assert job.output is not None
    (choice,) = job.output["choices"]
    assert choice["finish_reason"] == "length"
    assert len(choice["token_ids"]) == job.output_tokens == 12
    assert job.first_token_at is not None
    assert job.started_at is not None
    journal = Journal(redis, "test").read(job.id)
    assert "".join(entry.text for entry in journal) == choice["text"]
    assert [entry.token_id for entry in journal] == [*choice["token_ids"], None]
