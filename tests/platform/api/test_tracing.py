"""One trace from the request to the worker's run and the webhook, as spans and in log lines."""

from collections.abc import Iterator

import pytest
import structlog
from flask import Flask
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, format_span_id, format_trace_id
from penstock.app import create_app
from penstock.db import Database
from penstock.errors import SettingsError
from penstock.jobs.models import Job
from penstock.metrics import ControlMetrics
from penstock.settings import Settings
from penstock.tracing import Tracing, log_fields, make_tracing, parent_of, traceparent_of, valid_traceparent
from penstock.webhooks.models import WebhookDelivery
from penstock.webhooks.sender import Sender
from penstock.webhooks.tasks import deliver
from redis import Redis
from sqlalchemy import select

from tests.factories import WordCounter
from tests.platform.api.conftest import Caller, Worker
from tests.platform.webhooks.receiver import receiving

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SENT = f"00-{TRACE}-00f067aa0ba902b7-01"


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def traced(spans: InMemorySpanExporter) -> Iterator[Tracing]:
    tracing = Tracing("test", SimpleSpanProcessor(spans))
    yield tracing
    tracing.close()


@pytest.fixture
def app(settings: Settings, database: Database, redis: Redis, traced: Tracing) -> Iterator[Flask]:
    app = create_app(settings, prompts=WordCounter(), database=database, redis=redis, tracing=traced)
    yield app
    app.extensions["penstock"].stop_streams()
    app.extensions["penstock"].live.join()


def span_named(spans: InMemorySpanExporter, name: str) -> ReadableSpan:
    (found,) = [span for span in spans.get_finished_spans() if span.name == name]
    return found


def named(span: ReadableSpan) -> str:
    context = span.get_span_context()
    assert context is not None
    return f"00-{format_trace_id(context.trace_id)}-{format_span_id(context.span_id)}-{context.trace_flags:02x}"


def submit(caller: Caller, database: Database, **headers: str) -> Job:
    job_id = caller.post("/v1/jobs", {"model": "tiny", "input": {"prompt": "hello there"}}, **headers).json["id"]
    with database.transaction() as session:
        return session.get_one(Job, job_id)


@pytest.mark.usefixtures("deployment")
def test_a_job_keeps_the_span_of_its_submission_which_is_its_senders_child(
    caller: Caller, database: Database, spans: InMemorySpanExporter
) -> None:
    job = submit(caller, database, traceparent=SENT)
    span = span_named(spans, "POST /v1/jobs")
    assert job.traceparent == named(span)
    assert span.kind is SpanKind.SERVER
    assert span.parent is not None
    assert format_span_id(span.parent.span_id) == "00f067aa0ba902b7"
    assert span.attributes is not None
    assert (span.attributes["http.route"], span.attributes["http.response.status_code"]) == ("/v1/jobs", 202)


@pytest.mark.usefixtures("deployment")
def test_without_a_sender_a_trace_begins_here(caller: Caller, database: Database, spans: InMemorySpanExporter) -> None:
    job = submit(caller, database)
    span = span_named(spans, "POST /v1/jobs")
    assert (job.traceparent, span.parent) == (named(span), None)


def test_the_webhook_is_sent_within_the_jobs_trace(
    caller: Caller, database: Database, worker: Worker, traced: Tracing, spans: InMemorySpanExporter
) -> None:
    with receiving() as receiver:
        body = {"model": "tiny", "input": {"prompt": "hello there"}, "webhook": {"url": receiver.url}}
        caller.post("/v1/jobs", body, traceparent=SENT)
        worker.claim()
        worker.finish()
        with database.transaction() as session:
            delivery_id = session.scalars(select(WebhookDelivery.id)).one()
        sender = Sender(timeout_seconds=10, allow_loopback=True)
        metrics = ControlMetrics()
        ended = deliver(database, sender, delivery_id, lease_seconds=30, tracing=traced, metrics=metrics)
        assert ended == "delivered"
        (request,) = receiver.requests
    assert metrics.registry.get_sample_value("penstock_webhook_attempts_total", {"result": "delivered"}) == 1
    attempt = span_named(spans, "webhook.attempt")
    submitted = span_named(spans, "POST /v1/jobs").get_span_context()
    assert attempt.parent is not None
    assert submitted is not None
    assert attempt.parent.span_id == submitted.span_id
    assert request.headers["traceparent"] == named(attempt)
    assert TRACE in request.headers["traceparent"]


def test_log_lines_carry_the_trace_while_the_request_lasts_and_no_longer(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look() -> dict[str, str]:
        return structlog.contextvars.get_contextvars()

    monkeypatch.setitem(app.view_functions, "api_models.get_models", look)
    assert app.test_client().get("/v1/models", headers={"traceparent": SENT}).json["trace_id"] == TRACE
    assert "trace_id" not in structlog.contextvars.get_contextvars()


def test_off_it_records_nothing_and_passes_on_what_was_sent(
    settings: Settings, database: Database, redis: Redis
) -> None:
    app = create_app(settings, prompts=WordCounter(), database=database, redis=redis)
    tracing: Tracing = app.extensions["penstock"].tracing
    assert not tracing.on
    span = tracing.tracer.start_span("nothing", parent_of(SENT))
    assert not span.is_recording()
    assert traceparent_of(tracing.tracer.start_span("nothing", parent_of(None))) is None


@pytest.mark.parametrize(
    "text", ["", "nonsense", SENT[:-1], SENT.upper(), f"ff{SENT[2:]}", f"00-{'0' * 32}-00f067aa0ba902b7-01"]
)
def test_what_is_no_traceparent_is_ignored(text: str) -> None:
    assert valid_traceparent(text) is None


def test_log_fields_are_those_of_the_traceparent() -> None:
    assert log_fields(SENT) == {"trace_id": TRACE, "span_id": "00f067aa0ba902b7"}
    assert log_fields(None) == {}


def test_spans_that_go_nowhere_are_refused_by_name(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(SettingsError, match="PENSTOCK_OTLP_ENDPOINT"):
        make_tracing(settings.model_copy(update={"otlp_endpoint": "http://127.0.0.1:4318"}), "web")


def test_spans_reach_a_collector(settings: Settings) -> None:
    with receiving() as receiver:
        endpoint = f"http://127.0.0.1:{receiver.port}"
        tracing = make_tracing(settings.model_copy(update={"otlp_endpoint": endpoint}), "web")
        tracing.tracer.start_span("sent").end()
        tracing.close()
        (request,) = receiver.requests
    assert request.path == "/v1/traces"
    assert b"penstock-web" in request.body
