"""OpenTelemetry: one trace from the request that submits a job to its webhooks, carried by the job's row.

Doorbells name no job, so what carries the W3C `traceparent` across Celery is the row: the web process stores its span's
there, and the worker's run and the webhooks' attempts are that span's children. Log lines carry `trace_id` wherever a
traceparent is known. Without an exporter nothing is recorded, and a client's traceparent is passed on as it came.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import structlog
from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import (
    NonRecordingSpan,
    NoOpTracer,
    Span,
    SpanContext,
    TraceFlags,
    Tracer,
    format_span_id,
    format_trace_id,
    set_span_in_context,
)

import penstock
from penstock.errors import SettingsError
from penstock.settings import Settings, variable_name

_TRACEPARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


class Tracing:
    """One process's spans. Without a `processor` there are none, and what is asked for costs nothing."""

    def __init__(self, process: str, processor: SpanProcessor | None = None, *, share: float = 1.0) -> None:
        self._provider: TracerProvider | None = None
        self.tracer: Tracer = NoOpTracer()
        if processor is not None:
            resource = Resource({SERVICE_NAME: f"penstock-{process}", SERVICE_VERSION: penstock.__version__})
            sampler = ParentBased(TraceIdRatioBased(share))
            self._provider = TracerProvider(sampler=sampler, resource=resource, shutdown_on_exit=False)
            self._provider.add_span_processor(processor)
            self.tracer = self._provider.get_tracer("penstock")

    @property
    def on(self) -> bool:
        """Whether spans are recorded."""
        return self._provider is not None

    def close(self) -> None:
        """Send what is left."""
        if self._provider is not None:
            self._provider.shutdown()


def make_tracing(settings: Settings, process: str) -> Tracing:
    """Spans go where the settings say. Raises `SettingsError` when that needs a package that is not installed."""
    if settings.otlp_endpoint is None:
        return Tracing(process)
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise SettingsError(
            f"{variable_name('otlp_endpoint')}: needs a package that is not installed: pip install 'penstock[tracing]'"
        ) from None
    exporter = OTLPSpanExporter(endpoint=f"{settings.otlp_endpoint.rstrip('/')}/v1/traces")
    return Tracing(process, BatchSpanProcessor(exporter), share=settings.trace_share)


def valid_traceparent(given: str | None) -> str | None:
    """The text, where it is a W3C traceparent."""
    return given if given is not None and _span_context(given) is not None else None


def parent_of(traceparent: str | None) -> Context:
    """The context whose children belong to that traceparent; an empty one without it."""
    remote = _span_context(traceparent) if traceparent is not None else None
    return Context() if remote is None else set_span_in_context(NonRecordingSpan(remote), Context())


def traceparent_of(span: Span) -> str | None:
    """What names the span to others; None for one of no trace."""
    context = span.get_span_context()
    if not context.is_valid:
        return None
    return f"00-{format_trace_id(context.trace_id)}-{format_span_id(context.span_id)}-{context.trace_flags:02x}"


def log_fields(traceparent: str | None) -> dict[str, Any]:
    """What log lines say of a trace."""
    match = _TRACEPARENT.fullmatch(traceparent or "")
    return {"trace_id": match[1], "span_id": match[2]} if match else {}


@contextmanager
def traced_logs(traceparent: str | None) -> Iterator[None]:
    """Every log line of this thread carries the trace's id for the length of the block."""
    with structlog.contextvars.bound_contextvars(**log_fields(traceparent)):
        yield


def _span_context(traceparent: str) -> SpanContext | None:
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None:
        return None
    found = SpanContext(int(match[1], 16), int(match[2], 16), is_remote=True, trace_flags=TraceFlags(int(match[3], 16)))
    return found if found.is_valid else None
