"""An installation with so many of everything that a list shows, one more of each with every call."""

from typing import Final

from penstock.db import Database
from sqlalchemy import text

ROWS: Final = """
INSERT INTO deployment (id, model_name, model_version, source, manifest, recipe, context_length, digest)
  VALUES (:id, :id, '1', '/nowhere', '{}', '{"scheme": "none"}', 256, :id);
INSERT INTO deployment (id, model_name, model_version, source, manifest, recipe, context_length, digest)
  VALUES (:id || '_2', :id, '2', '/nowhere', '{}', '{"scheme": "int4"}', 256, :id || '_2');
INSERT INTO deployment (id, model_name, model_version, source, manifest, recipe, context_length, digest)
  VALUES (:id || '_c', 'common', :id, '/nowhere', '{}', '{"scheme": "none"}', 256, :id || '_c');
INSERT INTO routing_policy (model_name, champion_id, challenger_id, champion_since, reason)
  VALUES (:id, :id, :id || '_2', now(), 'a test');
INSERT INTO placement (deployment_id, replicas) VALUES (:id, 1);
INSERT INTO worker (id, hostname, pid, device, slots, heartbeat_at)
  VALUES (:id, :id, 1, 'cpu', 4, now() + interval '1 hour');
INSERT INTO hosting (worker_id, deployment_id, state)
  SELECT :id, id, 'ready' FROM deployment WHERE model_name IN (:id, 'common');
INSERT INTO rollout (id, model_name, candidate_id, champion_id, policy, policy_version, seed, state, step, fence, share,
  unit) SELECT 'rol_' || :id, :id, :id || '_2', :id, policy, policy_version, 'seed', state, step, fence, share, unit
  FROM rollout WHERE id = :rollout;
INSERT INTO tenant (id, name, webhook_secret) VALUES (:id, :id, 'whsec_dGVzdHMtb25seS10ZXN0cy1vbmx5');
INSERT INTO job (id, tenant_id, model, input, params, seed, deployment_id, model_name, model_version, routing, state,
  tags, error, started_at, finished_at) SELECT 'job_' || :id, :tenant, :id, '{"prompt": "x"}', '{}', 1, :id, :id, '1',
  '{"rule": "alias", "alias": "champion"}', 'failed', ARRAY['tag'], '{"code": "forward_failed", "message": "it broke"}',
  now(), now();
INSERT INTO event (job_id, number, tenant_id, type, data)
  VALUES ('job_' || :id, 1, :tenant, 'job.failed', '{"model_version": "1"}');
INSERT INTO usage_entry (job_id, tenant_id, model_name, model_version, prompt_tokens, output_tokens, cached_tokens,
  run_milliseconds, cost, currency) VALUES ('job_' || :id, :tenant, :id, '1', 1, 1, 0, 1, 1, 'EUR');
INSERT INTO dead_letter (id, tenant_id, job_id, reason, message, model_name, model_version)
  VALUES ('dlt_' || :id, :tenant, 'job_' || :id, :id, 'it broke', :id, '1');
INSERT INTO file (id, tenant_id, state, purpose, filename, content_type, bytes, sha256)
  VALUES ('file_' || :id, :tenant, 'ready', 'batch', :id, 'application/jsonl', 1, md5(:id));
INSERT INTO batch (id, tenant_id, state, input_file_id, endpoint, completion_window, invalid_lines, expires_at,
  in_progress_at, total_lines) VALUES ('batch_' || :id, :tenant, 'in_progress', 'file_' || :id, '/v1/jobs', '24h',
  'skip', now() + interval '1 day', now(), 1);
INSERT INTO batch_line (batch_id, line, state, custom_id, start, length, job_id)
  VALUES ('batch_' || :id, 1, 'open', :id, 0, 9, 'job_' || :id);
INSERT INTO api_key (id, tenant_id, name, digest, hint, scopes)
  VALUES (:id, :tenant, :id, decode(md5(:id), 'hex'), 'psk_', ARRAY['jobs:read']);
INSERT INTO bulk_operation (id, tenant_id, action, filter, actor)
  VALUES ('bulk_' || :id, :tenant, 'cancel', '{"tag": "x"}', '{"kind": "user", "id": "x", "name": "x"}');
INSERT INTO webhook_endpoint (id, tenant_id, url, events, secret, failures, failing_since)
  VALUES ('whe_' || :id, :tenant, 'https://example.com/' || :id, ARRAY['job.succeeded'],
  'whsec_dGVzdHMtb25seS10ZXN0cy1vbmx5', 1, now());
INSERT INTO webhook_delivery (id, tenant_id, endpoint_id, job_id, event_number, url, payload, status, next_attempt_at)
  VALUES ('msg_' || :id, :tenant, 'whe_' || :id, 'job_' || :id, 1, 'https://example.com/' || :id,
  '{"type": "job.failed"}', 'delivered', NULL);
INSERT INTO audit_entry (id, tenant_id, actor_kind, actor_id, actor_name, action, target, details)
  VALUES ('aud_' || :id, :tenant, 'user', 'usr', 'ada@example.com', 'key.created', :id, '{}')
"""


def add_one_of_each(database: Database, number: int, tenant_id: str, rollout_id: str) -> str:
    """One more worker, version, rollout, tenant, job, batch and so on; what they are called."""
    name = f"one-{number}"
    with database.transaction() as session:
        for statement in ROWS.split(";\n"):
            session.execute(text(statement), {"id": name, "tenant": tenant_id, "rollout": rollout_id})
    return name
