"""The offline gate: an evaluation of the candidate beside its reference, as a job on models' files.

The job is the one that `POST /v1/jobs` makes for the kind `evaluate`. A worker hashes the files of both versions
before it reads them, so the figures are those of the digests that stand with them. One that fails is tried once more;
then the gate holds and says why, until an operator pauses and resumes the rollout, or ends it.
"""

from typing import Any, Final

from sqlalchemy import delete, func, or_, select
from sqlalchemy.orm import Session

from penstock.auth.system_tenant import ensure_system_tenant
from penstock.compressions.models import Compression
from penstock.compressions.schemas import EvaluateRequest
from penstock.compressions.services import Asked, Submission, submit
from penstock.compressions.versions import FiledVersion
from penstock.errors import PenstockError
from penstock.jobs import services as jobs
from penstock.jobs.models import Job
from penstock.jobs.states import JobState
from penstock.registry.folder import manifest_digest
from penstock.registry.models import Deployment
from penstock.rollouts.evidence import Comparison, Evidence, ModelEvidence, OfflineFigures
from penstock.rollouts.models import OfflineEvaluation, Rollout
from penstock.rollouts.policy import Offline, Policy, Reference

MOST_TRIES: Final = 2
_NO_LIMIT: Final = 2**31 - 1
_WHOLE_BITS: Final = {"float32": 32.0, "float64": 64.0}


def begin(session: Session, rollout: Rollout, policy: Policy) -> None:
    """Nothing: the first `gather` submits the evaluation, under the lead."""


def gather(session: Session, rollout: Rollout, policy: Policy, before: Evidence) -> Evidence:
    """What the evaluation found, or why there is nothing yet. Submits one where none is under way."""
    if policy.offline is None or before.offline is not None:
        return before
    latest = session.scalars(_evaluations(rollout).order_by(OfflineEvaluation.number.desc()).limit(1)).one_or_none()
    job = session.get(Job, latest.job_id) if latest and latest.job_id else None
    if job is not None and not JobState(job.state).final:
        return Evidence()
    if job is not None and job.state == JobState.SUCCEEDED:
        return Evidence(offline=_figures(session, rollout, job))
    trouble = _told(job) if latest is not None else None
    if _tries(session, rollout) >= MOST_TRIES:
        return Evidence(trouble=trouble)
    number = latest.number + 1 if latest is not None else 1
    return Evidence(trouble=_submit(session, rollout, policy.offline, number) or trouble)


def end(session: Session, rollout: Rollout, policy: Policy) -> None:  # noqa: ARG001 - as every gate's end
    """Cancel what is under way, and forget all: who comes back begins anew."""
    ids = session.scalars(_evaluations(rollout).with_only_columns(OfflineEvaluation.job_id)).all()
    for job in session.scalars(select(Job).where(Job.id.in_([each for each in ids if each]))):
        if not JobState(job.state).final:
            jobs.cancel(session, job.tenant_id, job.id)
    session.execute(delete(OfflineEvaluation).where(OfflineEvaluation.rollout_id == rollout.id))


def bits_of(recipe: dict[str, Any]) -> float | None:
    """Bits of a version's weights by its recipe, in the mean over the layers that it names; none if it does not say."""
    config = recipe.get("config")
    if config is None:
        return _WHOLE_BITS.get(str(recipe.get("dtype")), 16.0) if recipe.get("scheme") == "none" else None
    told = config.get("bits", config.get("w_bit"))
    if told is not None:
        return float(told)
    groups = [
        (group["weights"]["num_bits"], len(group["targets"]))
        for group in config.get("config_groups", {}).values()
        if group.get("weights")
    ]
    layers = sum(count for _, count in groups)
    return sum(bits * count for bits, count in groups) / layers if layers else None


def _evaluations(rollout: Rollout) -> Any:
    return select(OfflineEvaluation).where(OfflineEvaluation.rollout_id == rollout.id)


def _tries(session: Session, rollout: Rollout) -> int:
    """Evaluations since the gate was entered, or the rollout resumed: an operator who resumes wants them anew."""
    made = _evaluations(rollout).outerjoin(Job, Job.id == OfflineEvaluation.job_id)
    since = made.where(or_(Job.id.is_(None), Job.created_at >= rollout.entered_at))
    return int(session.scalars(select(func.count()).select_from(since.subquery())).one())


def _told(job: Job | None) -> str:
    """What became of the one that ended without figures."""
    if job is None:
        return "the evaluation was deleted before it ended"
    error = job.error or {"message": "nobody said why"}
    return f"the evaluation {job.id} has {job.state}: {error['message']}"


def _submit(session: Session, rollout: Rollout, gate: Offline, number: int) -> str | None:
    """Queue the evaluation; why it cannot be, else."""
    candidate = _filed(session.get_one(Deployment, rollout.candidate_id))
    reference = _reference(session, rollout, gate, candidate)
    if reference is None:
        return (
            f"no job here has made {candidate.spelled}, so its parent is not known; "
            "let the policy's offline.reference be champion"
        )
    try:
        with session.begin_nested():
            job = submit(session, _asked(gate, candidate, reference, rollout), _submission(session, rollout, gate))
            session.add(OfflineEvaluation(rollout_id=rollout.id, number=number, job_id=job.id))
    except PenstockError as refused:
        return f"the evaluation cannot be submitted: {refused.message}"
    return None


def _asked(gate: Offline, candidate: FiledVersion, reference: FiledVersion, rollout: Rollout) -> Asked:
    newest = {"from": "jobs", "count": gate.jobs, "all_tenants": True}
    request = EvaluateRequest.model_validate(
        {
            "kind": "evaluate",
            "model": candidate.spelled,
            "against": reference.spelled,
            "data": {"from": "file", "file_id": gate.data} if gate.data else newest,
            "tags": ["rollout"],
            "metadata": {"rollout": rollout.id},
        }
    )
    return Asked(request, candidate, reference)


def _submission(session: Session, rollout: Rollout, gate: Offline) -> Submission:
    """A file is its tenant's, and so is what reads it; text of all tenants is for the platform's eyes alone."""
    owner = rollout.started_by if gate.data else None
    return Submission(owner or ensure_system_tenant(session), _NO_LIMIT)


def _reference(session: Session, rollout: Rollout, gate: Offline, candidate: FiledVersion) -> FiledVersion | None:
    if gate.reference is Reference.CHAMPION:
        return _filed(session.get_one(Deployment, rollout.champion_id))
    made = select(Compression.model).where(
        Compression.published["version"].astext == candidate.version,
        Compression.published["source"].astext == candidate.source,
        Compression.made["name"].astext == candidate.name,
    )
    parent = session.scalars(made.order_by(Compression.created_at.desc()).limit(1)).one_or_none()
    return FiledVersion.from_row(parent) if parent is not None else None


def _filed(deployment: Deployment) -> FiledVersion:
    scheme = str(deployment.recipe.get("scheme"))
    manifest = dict(deployment.manifest)
    return FiledVersion(deployment.model_name, deployment.model_version, deployment.source, manifest, scheme)


def _figures(session: Session, rollout: Rollout, job: Job) -> OfflineFigures:
    row = session.get_one(Compression, job.id)
    assert row.against is not None
    assert job.output is not None
    told = job.output["figures"]
    candidate = _model(FiledVersion.from_row(row.model), told["candidate"])
    reference = _model(FiledVersion.from_row(row.against), told["against"])
    noise = told["noise"]
    return OfflineFigures(
        bits=_bits(session.get_one(Deployment, rollout.candidate_id).recipe, told),
        tokens=told["positions"],
        candidate=_comparison(told),
        noise=_comparison(noise) if noise else Comparison(),
        answers=told["answers"],
        ratios=_ratios(candidate, reference),
        models={"candidate": candidate, "reference": reference},
        job_id=job.id,
    )


def _comparison(told: dict[str, Any]) -> Comparison:
    divergence, flips = told["divergence"], told["flips"]
    return Comparison(
        mean_kld=divergence["mean"]["value"],
        same_top=divergence["same_top"]["value"],
        perplexity_increase=divergence["perplexity_ratio"]["value"] - 1,
        flips=flips["share"]["value"] if flips else None,
    )


def _model(version: FiledVersion, told: dict[str, Any]) -> ModelEvidence:
    return ModelEvidence(
        version=version.version,
        digest=manifest_digest(version.manifest),
        held_bytes=told["held_bytes"],
        tokens_per_second=told["tokens_per_second"],
        perplexity=told["perplexity"]["value"],
        accuracy=told["exact_match"]["value"] if told["exact_match"] else None,
    )


def _ratios(candidate: ModelEvidence, reference: ModelEvidence) -> dict[str, float]:
    found = {"memory": candidate.held_bytes / reference.held_bytes}
    if candidate.tokens_per_second and reference.tokens_per_second:
        found["speed"] = candidate.tokens_per_second / reference.tokens_per_second
    return found


def _bits(recipe: dict[str, Any], told: dict[str, Any]) -> float:
    """By the recipe; else by what the files take beside those of a reference of 16 bits."""
    known = bits_of(recipe)
    return known if known is not None else 16.0 * float(told["candidate"]["bytes"] / told["against"]["bytes"])
