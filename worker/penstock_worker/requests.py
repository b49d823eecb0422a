"""A job as the engine is asked to run it."""

from penstock.jobs.states import JobClass

from penstock_worker.messages import Sampling, Submit
from penstock_worker.running import RunningJob


def request_of(job: RunningJob) -> Submit:
    """The job's request: its prompt, what earlier runs generated, and its sampling with the seed drawn at submit."""
    row, params = job.job, job.job.params
    return Submit(
        request_id=job.request_id,
        prompt_ids=job.prompt_ids,
        output_ids=[stream.token_ids for stream in job.choices],
        sampling=Sampling(
            temperature=params.get("temperature", 1.0),
            top_k=params.get("top_k", 0),
            top_p=params.get("top_p", 1.0),
            seed=row.seed,
            max_tokens=params.get("max_tokens"),
            min_tokens=params.get("min_tokens", 0),
            stop_token_ids=params.get("stop_token_ids", []),
            ignore_eos=params.get("ignore_eos", False),
            logprobs=0 if params.get("logprobs") else None,
        ),
        namespace=row.tenant_id,
        priority=row.priority,
        request_class=JobClass(row.job_class).name.lower(),
    )
