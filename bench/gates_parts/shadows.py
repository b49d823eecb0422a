"""What the shadow costs the champion: real engines of the invoice model, one job after the other, blocks with and
without a rollout in the shadow in turns.

Every internal job is seen before the gate deletes it, for its seconds of the device; beside them stand those of the
jobs that were scored. What a score costs more than its prefill is seen where nothing runs beside it, as both versions'
engines do in a shadow: answers are scored by jobs of the API, in turns with jobs that generate one token after a prompt
as long, which is a prefill. None of these begins as anything that was cached.
"""

import itertools
import json
import operator
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from penstock.auth.system_tenant import SYSTEM_TENANT_ID
from penstock.jobs.models import Job
from penstock.rollouts import services
from penstock.rollouts.policy import Policy
from sqlalchemy import func, select

from bench.gates_parts.switches import OPERATOR
from bench.platform_parts.clients import Caller, Latency
from bench.platform_parts.house import MODEL_NAME, REAL_WORKER, ROOT, House, job_body, until

INVOICES: Final = ROOT / "examples" / "invoices" / "samples" / "held-out.jsonl"
ANSWER_TOKENS: Final = 128
THINKING_SECONDS: Final = 0.05
"""Between two jobs: at idle nobody waits."""


@dataclass
class Seen:
    """Device seconds of internal jobs by version, by the job's id."""

    champion: dict[str, float] = field(default_factory=dict)
    candidate: dict[str, float] = field(default_factory=dict)

    def look(self, house: House) -> bool:
        """Note those that have ended; whether none is under way."""
        own = select(Job).where(Job.tenant_id == SYSTEM_TENANT_ID)
        with house.database.transaction() as session:
            for job in session.scalars(own.where(Job.finished_at.is_not(None))):
                spent = float((job.account or {}).get("device_seconds", 0.0))
                (self.champion if job.model_version == "1" else self.candidate)[job.id] = spent
            waiting = select(func.count()).where(Job.tenant_id == SYSTEM_TENANT_ID, Job.finished_at.is_(None))
            return not session.scalar(waiting)


def measured(house: House, jobs: int, blocks: int) -> dict[str, Any]:
    """With a front that runs already: `blocks` blocks of `jobs` jobs for each side, for each rate of sampling."""
    prompts = itertools.cycle(
        [json.loads(line)["messages"][0]["content"] for line in INVOICES.read_text().splitlines()]
    )
    with house.worker(*REAL_WORKER):
        _run(house, prompts, jobs)  # warm
        rare = _paired(house, prompts, jobs, blocks, 0.05)
        every = _paired(house, prompts, jobs, max(blocks // 4, 1), 1.0)
        prefilled, scored = _alone(house, prompts, max(jobs * blocks // 2, jobs))
    return {
        "sampling 0.05": rare,
        "sampling 1": every,
        "device ms of a prefill as long": _mean_ms(prefilled),
        "device ms of a score alone": _mean_ms(scored),
        "median score over its prefill": round(statistics.median(map(operator.truediv, scored, prefilled)), 3),
    }


@dataclass
class Block:
    """Seconds of some jobs, by the clock and of the device."""

    seconds: list[float] = field(default_factory=list)
    device: list[float] = field(default_factory=list)


def _paired(house: House, prompts: Iterator[str], jobs: int, blocks: int, rate: float) -> dict[str, Any]:
    alone, shadowed, seen = Block(), Block(), Seen()
    for at in range(2 * blocks):
        if at % 2:
            _run(house, prompts, jobs, into=alone)
        else:
            with _shadow(house, rate, seen):
                _run(house, prompts, jobs, into=shadowed, seen=seen)
    medians = [statistics.median(each.seconds) for each in (shadowed, alone)]
    return {
        "jobs of each side": len(alone.seconds),
        "ms alone": _ms(alone),
        "ms with the shadow": _ms(shadowed),
        "p50 over alone": round(medians[0] / medians[1], 4),
        "scored": len(seen.champion),
        "device ms of a job": _mean_ms(shadowed.device),
        "device ms of its score on the champion": _mean_ms(list(seen.champion.values())),
        "device ms of its score on the candidate": _mean_ms(list(seen.candidate.values())),
    }


@contextmanager
def _shadow(house: House, rate: float, seen: Seen) -> Iterator[None]:
    """A rollout in its shadow, from before the first job until all that it sampled was scored."""
    document = {"offline": None, "shadow": {"sampling": rate, "minimum_jobs": 10_000_000}}
    policy = Policy.model_validate_json(json.dumps(document))
    with house.database.transaction() as session:
        rollout = services.start(session, MODEL_NAME, "2", policy, OPERATOR).id
    yield
    time.sleep(1.0)  # a turn of the controller, which has the last ones scored
    until(lambda: seen.look(house), "the last answers to be scored", pause=0.05)
    with house.database.transaction() as session:
        services.abort(session, rollout, OPERATOR, "the bench")
    time.sleep(1.0)


def _alone(house: House, prompts: Iterator[str], jobs: int) -> tuple[list[float], list[float]]:
    """Device seconds of prompts that hold an invoice and its answer, and of scores of that answer; a pair for each."""
    prefilled, scored = [], []
    with Caller(house) as caller:
        for at in range(jobs):
            invoice = next(prompts)
            done = caller.submit(_body(invoice, ANSWER_TOKENS), wait=60)
            answer = done["output"]["choices"][0]["text"]
            prefill = caller.submit(_body(f"P{at} {invoice}{answer}", 1), wait=60)
            score = caller.submit(_to_score(f"S{at} {invoice}", answer), wait=60)
            prefilled.append(float(prefill["usage"]["device_seconds"]))
            scored.append(float(score["usage"]["device_seconds"]))
    return prefilled, scored


def _run(
    house: House, prompts: Iterator[str], jobs: int, *, into: Block | None = None, seen: Seen | None = None
) -> Block:
    block = Block() if into is None else into
    with Caller(house) as caller:
        for _ in range(jobs):
            began = time.perf_counter()
            done = caller.submit(_body(next(prompts), ANSWER_TOKENS), wait=60)
            block.seconds.append(time.perf_counter() - began)
            block.device.append(float(done["usage"]["device_seconds"]))
            time.sleep(THINKING_SECONDS)
            if seen is not None:
                seen.look(house)
    return block


def _body(invoice: str, tokens: int) -> bytes:
    asked = json.loads(job_body("", tokens))
    return json.dumps(asked | {"input": {"messages": [{"role": "user", "content": invoice}]}}).encode()


def _to_score(invoice: str, answer: str) -> bytes:
    """As a shadow asks: the likeliest twenty in the place of each of the answer's tokens."""
    given = {"messages": [{"role": "user", "content": invoice}], "continuation": answer}
    asked = {"kind": "score", "model": MODEL_NAME, "input": given, "params": {"prompt_logprobs": 20}}
    return json.dumps(asked).encode()


def _ms(block: Block) -> dict[str, float]:
    told = Latency.of(block.seconds)
    return {"p50": told.p50, "p95": told.p95}


def _mean_ms(seconds: list[float]) -> float | None:
    return round(1000 * statistics.mean(seconds), 3) if seconds else None
