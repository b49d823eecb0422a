"""A job as the engine is asked to run it."""

from collections.abc import Mapping
from typing import Any

from penstock.jobs.states import JobClass
from penstock.jobs.structure import Structure

from penstock_worker.messages import Grammar, Sampling, Submit
from penstock_worker.running import RunningJob

_AS_THEY_ARE = (
    "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
    "max_tokens", "min_tokens", "ignore_eos",
)  # fmt: skip


def request_of(job: RunningJob) -> Submit:
    """The job's request: its prompt, what earlier runs generated, and its sampling with the seed drawn at submit."""
    row = job.job
    return Submit(
        request_id=job.request_id,
        prompt_ids=job.prompt_ids,
        output_ids=[stream.token_ids for stream in job.choices],
        closed=[choice for choice, stream in enumerate(job.choices) if stream.finish_reason is not None],
        sampling=_sampling(job),
        namespace=row.tenant_id,
        priority=row.priority,
        request_class=JobClass(row.job_class).name.lower(),
        tenant=row.tenant_id,
        weight=job.weight,
        deadline=job.deadline,
        token_budget=row.token_budget,
        scored_from=job.scored_from,
    )


def _sampling(job: RunningJob) -> Sampling:
    params = job.job.params
    if job.scored_from is not None:
        return Sampling(logprobs=None, prompt_logprobs=params.get("prompt_logprobs") or 0)
    return Sampling(
        **{name: params[name] for name in _AS_THEY_ARE if name in params},
        seed=job.job.seed,
        stop_token_ids=tuple(params.get("stop_token_ids", ())),
        logit_bias=tuple((int(token), bias) for token, bias in params.get("logit_bias", {}).items()),
        logprobs=_logprobs(params, needed=job.selecting),
        prompt_logprobs=None if job.prompt_scored else params.get("prompt_logprobs"),
        n=len(job.choices),
        grammar=_grammar(job.structure),
    )


def _logprobs(params: Mapping[str, Any], *, needed: bool) -> int | None:
    if params.get("logprobs"):
        return int(params.get("top_logprobs", 0))
    return 0 if needed else None


def _grammar(structure: Structure | None) -> Grammar | None:
    if structure is None:
        return None
    kind, source = structure
    return Grammar(kind, source if isinstance(source, str) else tuple(source))
