"""What the operators' pages show of an installation that has worked for a month: written as its own parts write it."""

import json
from typing import Final

from penstock.auth.audit import Actor, ActorKind
from penstock.db import Database
from penstock.rollouts import lead, services
from penstock.rollouts.evidence import Evidence
from penstock.rollouts.models import Rollout
from penstock.rollouts.policy import Policy
from penstock.rollouts.statistics import Sample, Tally
from penstock.rollups.series import SAMPLES, SERIES, Kind
from sqlalchemy import text
from sqlalchemy.orm import Session

LABELS: Final = {
    "model": ("bench", "other"),
    "version": ("1",),
    "class": ("interactive", "batch"),
    "state": ("succeeded", "failed"),
    "code": ("engine_crashed",),
}
POINTS: Final = text("""
INSERT INTO metric_point (step, series, at, labels, count, total, peak, buckets)
SELECT step, series, to_timestamp(floor(extract(epoch FROM now()) / step) * step - step * back), labels,
  10, 10 * (1 + back % 23), 1 + back % 23,
  CASE WHEN spread THEN jsonb_build_object(40 + back % 11, 60, 58 + back % 7, 30, 74, 10) ELSE '{}' END
FROM (VALUES (60, :minutes), (3600, :hours)) AS kept (step, many), generate_series(1, many) AS back,
  jsonb_to_recordset(CAST(:lines AS jsonb)) AS line (series text, labels jsonb, spread boolean)
""")
AROUND: Final = """
INSERT INTO metric_progress (name, since, through)
  SELECT name, now() - interval '40 days', now() FROM unnest(ARRAY['counts', 'samples']) AS name;
INSERT INTO deployment (id, model_name, model_version, source, manifest, recipe, context_length, digest)
  VALUES ('dep_bench2', 'bench', '2', '/nowhere', '{}', '{"scheme": "int4"}', 4096, 'y');
INSERT INTO worker (id, hostname, pid, device, slots, heartbeat_at)
  SELECT 'wrk_' || number, 'gpu-' || number, number, 'cuda:0', 32, now() + interval '1 hour'
  FROM generate_series(1, 8) AS number;
INSERT INTO hosting (worker_id, deployment_id, state, free_slots, stats, ready_at)
  SELECT worker.id, deployment.id, 'ready', 8, '{"pages_total": 4096, "pages_in_use": 900, "running": 9,
  "max_running": 32, "tokens_generated": 8000000}', now() FROM worker, deployment WHERE model_name = 'bench';
INSERT INTO dead_letter (id, tenant_id, job_id, reason, message, model_name, model_version)
  SELECT 'dlt_' || substr(id, 5), tenant_id, id, 'engine_crashed', 'it died', model_name, model_version FROM job
  WHERE state = 'failed';
INSERT INTO audit_entry (id, tenant_id, actor_kind, actor_id, actor_name, action, target, details)
  SELECT 'aud_' || substr(id, 5), tenant_id, 'user', 'usr_bench', 'ada@example.com', 'webhook_endpoint.created', id,
  '{"url": "https://example.com/hook"}' FROM job WHERE batch_line % 2 = 0
"""


def furnish(database: Database, *, minutes: int = 3 * 1440, hours: int = 30 * 24) -> dict[str, str]:
    """Points of so long, workers, a rollout, a letter for each failed job, a long record; ids of what has pages."""
    with database.transaction() as session:
        session.execute(text("SET LOCAL statement_timeout = 0"))
        session.execute(POINTS, {"lines": json.dumps(_lines()), "minutes": minutes, "hours": hours})
        for statement in AROUND.split(";"):
            session.execute(text(statement))
        letter = session.execute(text("SELECT max(id) FROM dead_letter")).scalar_one()
        tenant = session.execute(text("SELECT tenant_id FROM dead_letter WHERE id = :id"), {"id": letter}).scalar_one()
        return {"rollout": _rollout(session), "letter": letter, "tenant": tenant}


def _lines() -> list[dict[str, object]]:
    """Every series that is kept, with each of its sets of labels."""
    kept = [each for each in SERIES.values() if each.kind is not Kind.RATIO]
    lines: list[dict[str, object]] = [{"series": SAMPLES, "labels": {}, "spread": False}]
    for each in kept:
        sets: list[dict[str, str]] = [{}]
        for label in each.labels:
            sets = [known | {label: value} for known in sets for value in LABELS[label]]
        lines += [{"series": each.name, "labels": labels, "spread": each.kind is Kind.SPREAD} for labels in sets]
    return lines


def _rollout(session: Session) -> str:
    """In its canary, with a judgement for its page and its charts."""
    actor = Actor(ActorKind.COMMAND, "bench", "bench", None, ())
    rollout_id = services.start(session, "bench", "2", Policy(offline=None, shadow=None), actor, "to measure it").id
    holding = lead.take(session, lead.ROLLOUTS, "bench", 60)
    assert holding is not None
    for units in range(20, 120, 20):
        fence = session.get_one(Rollout, rollout_id).fence
        services.conclude(session, holding, rollout_id, fence, _evidence(units), may_promote=False)
    lead.release(session, holding)
    return rollout_id


def _evidence(units: int) -> Evidence:
    differences = Sample(((-1, units // 30), (0, units - units // 15), (1, units // 30)))
    return Evidence(
        seconds=float(units * 10),
        step_units=units,
        units=Tally().plus(0.01, candidate=units, champion=units * 99),
        failures=Tally().plus(0.01, candidate=units // 30, champion=units * 3),
        pairs={"errors": differences, "slow": differences},
    )
