"""Receiving webhooks with the client: what is signed by the public library is accepted, all else refused."""

import json
import time
from datetime import UTC, datetime

import pytest
from penstock.client import Feedback, Job, WebhookEndpoint, WebhookInvalid, verify_webhook
from standardwebhooks import Webhook

from tests.platform.client.server import FINISHED

SECRET = "whsec_dGVzdHMtb25seS10ZXN0cy1vbmx5"
BODY = json.dumps(
    {"type": "job.succeeded", "timestamp": "2026-11-21T10:00:01.000Z", "event_number": 3, "data": FINISHED}
)


def headers_for(body: str, moment: float) -> dict[str, str]:
    return {
        "Webhook-Id": "msg_1",
        "Webhook-Timestamp": str(int(moment)),
        "Webhook-Signature": Webhook(SECRET).sign("msg_1", datetime.fromtimestamp(moment, UTC), body),
    }


@pytest.mark.parametrize("body", [BODY, BODY.encode()])
def test_a_genuine_webhook_is_the_event(body: str | bytes) -> None:
    event = verify_webhook(headers_for(BODY, time.time()), body, SECRET)
    assert isinstance(event.data, Job)
    assert (event.type, event.event_number, event.data.id) == ("job.succeeded", 3, "job_01")
    assert event.data.text == "Hé\u2028llo"


@pytest.mark.parametrize("missing", ["Webhook-Id", "Webhook-Timestamp", "Webhook-Signature"])
def test_a_missing_header_is_named(missing: str) -> None:
    headers = headers_for(BODY, time.time())
    del headers[missing]
    with pytest.raises(WebhookInvalid, match=missing.lower()):
        verify_webhook(headers, BODY, SECRET)


def test_an_altered_body_is_refused() -> None:
    with pytest.raises(WebhookInvalid, match="signature"):
        verify_webhook(headers_for(BODY, time.time()), BODY + " ", SECRET)


def test_another_id_is_refused() -> None:
    with pytest.raises(WebhookInvalid, match="signature"):
        verify_webhook(headers_for(BODY, time.time()) | {"Webhook-Id": "msg_2"}, BODY, SECRET)


@pytest.mark.parametrize("offset", [-301, 302])
def test_one_that_is_too_old_or_too_new_is_refused(offset: int) -> None:
    with pytest.raises(WebhookInvalid, match="300 seconds"):
        verify_webhook(headers_for(BODY, time.time() + offset), BODY, SECRET)


@pytest.mark.parametrize("timestamp", ["", "now", "1e9", "-5", "9" * 40])
def test_a_timestamp_that_is_none_is_refused(timestamp: str) -> None:
    with pytest.raises(WebhookInvalid, match="timestamp"):
        verify_webhook(headers_for(BODY, time.time()) | {"Webhook-Timestamp": timestamp}, BODY, SECRET)


def test_signed_nonsense_is_refused() -> None:
    with pytest.raises(WebhookInvalid, match="no event"):
        verify_webhook(headers_for("{}", time.time()), "{}", SECRET)


def test_an_endpoints_own_event_has_the_endpoint() -> None:
    endpoint = {
        "id": "whe_1", "object": "webhook_endpoint", "url": "https://x/", "description": "", "events": ["job.failed"],
        "previous_secret_until": None, "failures": 3, "failing_since": "2026-11-21T10:00:01.000Z",
        "disabled_at": None, "disabled_reason": None, "created_at": "2026-11-21T10:00:01.000Z",
    }  # fmt: skip
    body = json.dumps({"type": "webhook_endpoint.test", "timestamp": "2026-11-21T10:00:01.000Z", "data": endpoint})
    event = verify_webhook(headers_for(body, time.time()), body, SECRET)
    assert isinstance(event.data, WebhookEndpoint)
    assert (event.type, event.event_number, event.data.failures) == ("webhook_endpoint.test", None, 3)


def test_feedback_comes_as_feedback() -> None:
    said = {
        "id": "fbk_1", "object": "feedback", "job_id": "job_1", "choice": None, "score": 0.5, "label": None,
        "comment": None, "user": None, "api_key_id": "key_1", "model_name": "tiny", "model_version": "1",
        "created_at": "2026-11-21T10:00:01.000Z",
    }  # fmt: skip
    body = json.dumps({"type": "job.feedback", "timestamp": "2026-11-21T10:00:01.000Z", "data": said})
    event = verify_webhook(headers_for(body, time.time()), body, SECRET)
    assert isinstance(event.data, Feedback)
    assert (event.data.score, event.data.job_id) == (0.5, "job_1")
