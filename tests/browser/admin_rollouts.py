"""Rollouts for the pictures of the operators' pages: one in the middle of its course, and others that have ended.

Jobs are drawn from a fixed seed, and every verdict is the product's own, on the evidence that those jobs make.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final

import numpy as np
from penstock.auth.audit import Actor
from penstock.auth.models import Tenant
from penstock.clock import utc_now
from penstock.registry.models import Deployment, Hosting, Worker
from penstock.registry.tokenizer import ModelTokenizer
from penstock.replay.models import Comparison as Scored
from penstock.replay.models import ComparisonState
from penstock.rollouts import lead, operating, services
from penstock.rollouts.assignment import Arm
from penstock.rollouts.evidence import Comparison, Evidence, ModelEvidence, OfflineFigures, paired
from penstock.rollouts.free_running import Ended
from penstock.rollouts.models import Rollout
from penstock.rollouts.policy import AB, Policy
from penstock.rollouts.states import State
from penstock.rollouts.statistics import Sample
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from tests.factories import DEMO_MODEL, make_deployment, submit_job
from tests.platform.portal.scene import finished

SAMPLES: Final = DEMO_MODEL.parent / "samples"
LOOKS_PER_GATE: Final = 40
EARLIER: Final = "UPDATE gate_point SET at = at - interval '1 hour' WHERE rollout_id = :id"
CHAMPION_FAILS, CHAMPION_SLOW = 0.012, 0.05


POLICIES: Final = (
    (Policy(ab=AB()), "users judge, too"),
    (Policy(ab=AB(feedback_margin=0.03), keep_warm=3 * 86400), "three days to take it back"),
)


@dataclass(frozen=True)
class Truth:
    """What a candidate is like, beside a champion as above."""

    mean_kld: float = 0.031
    disagreement: float = 0.036
    fails: float = CHAMPION_FAILS
    slow: float = 0.046
    scheme: str = "int4"
    stops_at: tuple[str, int] | None = None
    """The gate in which the story is left before its end."""


def rollouts_of(session: Session, tenant: Tenant, actor: Actor) -> str:
    """All of them; answers with the id of the one that is under way."""
    harmed = Truth(fails=CHAMPION_FAILS * 9, slow=0.06)
    other = hosted(session, "support-replies", "7", "8", harmed)
    begin_and_judge(session, other, Policy(ab=AB()), actor, harmed, "tuned on the answers of May", days=6)
    truth = Truth(fails=0.008, stops_at=("canary", 2))
    named = select(Deployment).where(Deployment.model_name == "invoice-extractor").order_by(Deployment.model_version)
    candidate = list(session.scalars(named))[-1]
    rollout = begin_and_judge(session, candidate, Policy(ab=AB()), actor, truth, "int4, a third of the size", days=2)
    for wished, why in POLICIES:
        operating.set_policy(session, "invoice-extractor", wished, actor, why, tenant_id=tenant.id)
    for number in range(3):
        flip(session, tenant, rollout.id, number)
    return rollout.id


def hosted(session: Session, model: str, old: str, new: str, truth: Truth) -> Deployment:
    """The newer of a model's two versions, on one worker that has both ready."""
    pair = make_deployment(session, model, old), make_deployment(session, model, new, champion=False)
    pair[1].recipe = {"scheme": truth.scheme, "method": "gptq"}
    heard = utc_now() + timedelta(minutes=10)
    worker = Worker(
        id=f"wrk_{model}", hostname="gpu-11", pid=7310, device="cuda:0 H200", slots=32,
        started_at=heard - timedelta(days=3), heartbeat_at=heard, last_claim_at=utc_now(),
    )  # fmt: skip
    session.add(worker)
    session.flush()
    for version in pair:
        session.add(Hosting(worker_id=worker.id, deployment_id=version.id, state="ready", free_slots=9))
    session.flush()
    return pair[1]


def begin_and_judge(
    session: Session,
    candidate: Deployment,
    policy: Policy,
    actor: Actor,
    truth: Truth,
    reason: str,
    *,
    days: float,
) -> Rollout:
    """The rollout with every gate judged at many looks, until a verdict ends it or the story stops."""
    rollout = services.start(session, candidate.model_name, candidate.model_version, policy, actor, reason)
    holding = lead.take(session, lead.ROLLOUTS, "a story", 600)
    assert holding is not None
    rng = np.random.default_rng(4)
    for evidence in evidences(rollout, policy, truth, rng):
        assert services.conclude(session, holding, rollout.id, rollout.fence, evidence) is not None
        session.execute(text(EARLIER), {"id": rollout.id})
        session.refresh(rollout)
    lead.release(session, holding)
    set_back(session, rollout, days)
    return rollout


def evidences(rollout: Rollout, policy: Policy, truth: Truth, rng: np.random.Generator) -> Iterator[Evidence]:
    """What each look sees, of the gate where the rollout stands at that time."""
    yield offline()
    shadow = Evidence()
    while rollout.state == State.SHADOW:
        shadow = scored(shadow, truth, rng)
        yield shadow
    canary = Evidence()
    while rollout.state == State.CANARY:
        step = rollout.step
        canary = replace(canary, step_units=0)
        for _ in range(LOOKS_PER_GATE):
            share = policy.canary.steps[step].share
            canary = served(canary, share, round(11 / share), truth, rng)
            yield canary
            if (rollout.state, rollout.step) != (State.CANARY, step):
                break
            if truth.stops_at == ("canary", step) and canary.step_units > 150:
                return


def offline() -> Evidence:
    """A held-out set on which the candidate lost little."""
    models = {
        "candidate": ModelEvidence("4", "c" * 64, 5_412_000_000, 18_420.0, 6.31, 0.871),
        "reference": ModelEvidence("3", "b" * 64, 16_060_000_000, 12_910.0, 6.24, 0.879),
    }
    candidate = Comparison(mean_kld=0.0287, same_top=0.9462, perplexity_increase=0.0112, flips=0.0215)
    noise = Comparison(mean_kld=0.00012, same_top=0.9991, perplexity_increase=0.0001, flips=0.002)
    ratios = {"memory": 0.337, "speed": 1.43}
    return Evidence(offline=OfflineFigures(4.0, 61_440, candidate, noise, 512, ratios, models))


def scored(before: Evidence, truth: Truth, rng: np.random.Generator) -> Evidence:
    """With a few more answers scored, one of them answered as well."""
    count = 6
    divergence = np.minimum(rng.exponential(truth.mean_kld, count), 1.0)
    choices = rng.beta(1.0, 1 / truth.disagreement - 1, count)
    seen = before.scored or {name: Sample(lower=0.0) for name in ("mean_kld", "disagreement")}
    free = before.free.plus(Ended(False, 2.1, 0.9), Ended(False, 1.9, 1.3), exact=bool(rng.random() < 0.6))
    more = {"mean_kld": seen["mean_kld"].plus(*divergence), "disagreement": seen["disagreement"].plus(*choices)}
    return replace(before, scored=more, free=free, seconds=before.seconds + 700.0)


def served(before: Evidence, share: float, jobs: int, truth: Truth, rng: np.random.Generator) -> Evidence:
    """With so many more jobs, of which the candidate had its share."""
    ours = rng.random(jobs) < share
    chances = {
        "errors": np.where(ours, truth.fails, CHAMPION_FAILS), "slow": np.where(ours, truth.slow, CHAMPION_SLOW),
    }  # fmt: skip
    events = {name: rng.random(jobs) < chance for name, chance in chances.items()}
    pairs, waiting = dict(before.pairs), dict(before.waiting)
    for name, happened in events.items():
        came = [(Arm.CANDIDATE if mine else Arm.CHAMPION, float(it)) for mine, it in zip(ours, happened, strict=True)]
        found = paired(waiting.get(name, ()), came)
        pairs[name] = pairs.get(name, Sample()).plus(*found.differences)
        waiting[name] = found.waiting
    counts = {name: (int((it & ours).sum()), int((it & ~ours).sum())) for name, it in events.items()}
    slow = Policy().latency
    assert slow is not None
    stratum = slow.strata[0]
    return replace(
        before,
        seconds=before.seconds + 900.0,
        step_units=before.step_units + int(ours.sum()),
        units=before.units.plus(share, int(ours.sum()), int((~ours).sum())),
        failures=before.failures.plus(share, *counts["errors"]),
        slow=before.slow
        | {stratum: before.slow.get(stratum, replace(before.failures, splits=())).plus(share, *counts["slow"])},
        pairs=pairs,
        waiting=waiting,
    )


def set_back(session: Session, rollout: Rollout, days: float) -> None:
    """As if it had begun so many days ago: its moves at even distances until some minutes ago."""
    session.execute(text("ALTER TABLE decision DISABLE TRIGGER USER"))  # the ledger lets nobody rewrite it
    session.execute(
        text(
            "UPDATE decision SET decided_at = now() - make_interval(secs => :span * (1 - (number - 1.0) / :moves)) "
            "WHERE rollout_id = :id"
        ),
        {"span": days * 86400, "moves": rollout.fence, "id": rollout.id},
    )
    session.execute(text("ALTER TABLE decision ENABLE TRIGGER USER"))
    session.execute(
        text("UPDATE rollout SET created_at = now() - make_interval(secs => :span) WHERE id = :id"),
        {"span": days * 86400, "id": rollout.id},
    )
    session.expire_all()


def flip(session: Session, tenant: Tenant, rollout_id: str, number: int) -> None:
    """An invoice that the champion has read, and where the candidate would have read another total."""
    tokenizer = ModelTokenizer.from_folder(DEMO_MODEL)
    sample = SAMPLES / f"{number + 1:02}.txt"
    answer = json.dumps(json.loads(sample.with_suffix(".json").read_text()), separators=(",", ":"))
    ids = tokenizer.encode_input({"prompt": answer})
    output = {"choices": [{"text": answer, "token_ids": ids}]}
    asked = submit_job(session, tenant, model="invoice-extractor", input={"prompt": sample.read_text()})
    job = finished(session, asked, "succeeded", output=output)
    first, worst = len(ids) // 2, len(ids) - 5
    parting, farthest = parting_at(ids, first, 0.19, 0.46), parting_at(ids, worst, 0.74 - 0.2 * number, 0.61)
    mean = 0.081 - 0.021 * number
    figures = {"tokens": len(ids), "mean_kld": mean, "largest_kld": farthest["kld"], "disagreement": 2 / len(ids)}
    kept = figures | {"mean_rank": 1.04, "logprob_difference": -0.03, "parting": parting, "worst": farthest}
    told = {"mean_kld": mean, "disagreement": 2 / len(ids), "scored": kept, "state": ComparisonState.DONE}
    session.add(Scored(id=f"cmp_story{number}", source_id=job.id, rollout_id=rollout_id, **told))
    session.flush()


def parting_at(ids: list[int], position: int, kld: float, sure: float) -> dict[str, Any]:
    """The champion keeps to its answer there, and the candidate would have taken a token of its neighbourhood."""
    token = ids[position]
    other, third = [each for each in dict.fromkeys(reversed(ids[:position])) if each != token][1:3]
    return {
        "position": position, "token_id": token, "probability": 0.31, "kld": kld,
        "reference": _likely((token, sure + 0.2), (other, 0.11), (third, 0.03)),
        "candidate": _likely((other, sure), (token, 0.31), (third, 0.05)),
    }  # fmt: skip


def _likely(*tokens: tuple[int, float]) -> list[dict[str, Any]]:
    return [{"token_id": token, "probability": round(chance, 3)} for token, chance in tokens]
