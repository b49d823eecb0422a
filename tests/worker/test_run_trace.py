"""The spans of a run through a real engine, as children of whatever submitted its job."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode, format_span_id, format_trace_id
from penstock.clock import utc_now
from penstock.jobs.states import JobState
from penstock.tracing import Tracing
from penstock_worker.messages import EngineSpec
from penstock_worker.run_trace import trace_run
from penstock_worker.running import Finished, RunningJob

from tests.patience import eventually
from tests.worker.bridging import OpenBridge, opened_bridge

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture(scope="module")
def opened(model_folder: Path) -> Iterator[OpenBridge]:
    with opened_bridge(EngineSpec(str(model_folder), max_running=2, kv_bytes=2**27, threads=1)) as opened:
        yield opened


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(spans: InMemorySpanExporter) -> Iterator[Tracing]:
    tracing = Tracing("worker", SimpleSpanProcessor(spans))
    yield tracing
    tracing.close()


def job_of(opened: OpenBridge, max_tokens: int = 6) -> RunningJob:
    job = opened.job(max_tokens)
    job.job.queued_at = utc_now() - timedelta(seconds=9)
    job.job.model = job.job.model_name = "tiny"
    job.job.model_version = "1"
    job.job.traceparent = f"00-{TRACE}-{SPAN}-01"
    job.job.input = {"messages": []}
    return job


def seconds(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


def test_a_run_is_told_with_its_phases(opened: OpenBridge, tracing: Tracing, spans: InMemorySpanExporter) -> None:
    job = job_of(opened)
    opened.submit(job)
    eventually(lambda: job.ending, "the end of the run")
    trace_run(tracing, job, device="cpu")
    found = {span.name: span for span in spans.get_finished_spans()}
    assert set(found) == {"job.wait", "chat tiny", "engine.queue", "engine.prefill", "engine.decode"}
    run, context = found["chat tiny"], found["chat tiny"].get_span_context()
    assert context is not None
    assert format_trace_id(context.trace_id) == TRACE
    parents = {name: format_span_id(span.parent.span_id) for name, span in found.items() if span.parent is not None}
    own = format_span_id(context.span_id)
    assert parents == {"job.wait": SPAN, "chat tiny": SPAN} | dict.fromkeys(
        ("engine.queue", "engine.prefill", "engine.decode"), own
    )
    attributes = run.attributes or {}
    assert attributes["gen_ai.request.model"] == "tiny"
    assert attributes["gen_ai.response.model"] == "tiny:1"
    assert attributes["gen_ai.usage.input_tokens"] == 3
    assert attributes["gen_ai.usage.output_tokens"] == 6
    assert attributes["gen_ai.response.finish_reasons"] == ("length",)
    assert attributes["gen_ai.request.max_tokens"] == 6
    steps = [(found[f"engine.{name}"].attributes or {})["penstock.engine.steps"] for name in ("prefill", "decode")]
    assert steps == [1, 5]
    spent = job.meter.spent
    assert seconds(found["engine.decode"]) == pytest.approx(spent.decode_seconds, abs=2e-3)
    assert seconds(found["engine.prefill"]) == pytest.approx(spent.prefill_seconds, abs=2e-3)
    assert seconds(found["job.wait"]) > 8.5


def test_a_failure_is_an_error_with_its_code(opened: OpenBridge, tracing: Tracing, spans: InMemorySpanExporter) -> None:
    job = job_of(opened)
    job.end(Finished(JobState.FAILED, {"code": "prompt_too_long", "message": "too long"}))
    trace_run(tracing, job, device="cpu")
    (run,) = [span for span in spans.get_finished_spans() if span.name == "chat tiny"]
    assert run.status.status_code is StatusCode.ERROR
    assert (run.attributes or {})["error.type"] == "prompt_too_long"


def test_off_nothing_is_made(opened: OpenBridge, monkeypatch: pytest.MonkeyPatch) -> None:
    tracing = Tracing("worker")
    monkeypatch.setattr(tracing, "tracer", None)
    trace_run(tracing, job_of(opened), device="cpu")
