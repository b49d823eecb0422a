"""What Prometheus reads of a worker.

Names that begin with `vllm:` mean what vLLM means by them (v1/metrics/loggers.py).
"""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from penstock.jobs.models import Job
from penstock.metrics import HouseMetrics
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from penstock_worker.energy import EnergyMeter
from penstock_worker.messages import Measures, StepReport

_LABELS: Final = ("model_name", "model_version", "engine")
_REQUEST_SECONDS: Final = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920)
_TTFT_SECONDS: Final = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560,
)  # fmt: skip
_GAP_SECONDS: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5, 7.5, 10, 20, 40,
)  # fmt: skip
_TOKENS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
_GAUGES: Final = {
    "vllm:num_requests_running": ("Choices that are being generated", "running"),
    "vllm:num_requests_waiting": ("Choices that the engine has and does not run yet", "waiting"),
}
_COUNTERS: Final = {
    "vllm:prefix_cache_queries": ("Tokens that were looked up in the prefix cache", "prefix_queries"),
    "vllm:prefix_cache_hits": ("Of these, tokens that were there", "prefix_hits"),
    "vllm:num_preemptions": ("How often a choice had to give its pages up", "preemptions"),
}
_SPANS: Final = {
    "vllm:time_to_first_token_seconds": ("From the engine's queue to the first token", _TTFT_SECONDS),
    "vllm:request_queue_time_seconds": ("In the engine's queue", _REQUEST_SECONDS),
    "vllm:request_prefill_time_seconds": ("From there to the first token", _REQUEST_SECONDS),
    "vllm:request_decode_time_seconds": ("From there to the last token", _REQUEST_SECONDS),
    "vllm:request_inference_time_seconds": ("Prefill and decoding together", _REQUEST_SECONDS),
    "vllm:e2e_request_latency_seconds": ("From the engine's queue to the last token", _REQUEST_SECONDS),
    "vllm:inter_token_latency_seconds": ("From a step with a token of a request to its next", _GAP_SECONDS),
    "vllm:request_prompt_tokens": ("Tokens of a request's prompt", _TOKENS),
    "vllm:request_generation_tokens": ("Tokens that were generated for a request", _TOKENS),
    "vllm:iteration_tokens_total": ("Tokens that ran in a step", _TOKENS),
}
_JOB_SPANS: Final = {
    "penstock_job_time_to_first_token_seconds": ("From submission to the first token", _TTFT_SECONDS),
    "penstock_job_e2e_seconds": ("From submission to the end", _REQUEST_SECONDS),
}


class WorkerMetrics:
    """All metrics of one worker process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.house = HouseMetrics(self.registry)
        self._gauges = {name: self._gauge(name, text) for name, (text, _) in _GAUGES.items()}
        self._kv_usage = self._gauge("vllm:kv_cache_usage_perc", "Share of the KV cache's pages in use, 0 to 1")
        self._hit_rate = self._gauge("penstock_prefix_cache_hit_rate", "Share of looked up tokens found, 0 to 1")
        self._counters = {name: self._counter(name, text) for name, (text, _) in _COUNTERS.items()}
        self._prompt = self._counter("vllm:prompt_tokens", "Tokens of prompts that were prefilled or found cached")
        self._cached = self._counter("vllm:prompt_tokens_cached", "Of these, tokens that were found cached")
        self._generated = self._counter("vllm:generation_tokens", "Tokens that were generated")
        self._success = self._counter("vllm:request_success", "Requests that ended", "finished_reason")
        self._spans = {name: self._histogram(name, *given) for name, given in (_SPANS | _JOB_SPANS).items()}
        self._busy = self._counter("penstock_engine_busy_seconds", "Time in which the engine ran steps")
        self._use = self._counter(
            "penstock_device_seconds",
            "The same shared out: charged, recomputed (the platform's loss), or dropped (for jobs held no more)",
            "use",
        )
        self._runs = self._counter("penstock_runs", "Runs of jobs that ended", "outcome")
        self.fenced = Counter(
            "penstock_fenced_writes_rejected",
            "Writes that were refused because the lease had been lost",
            ("write",),
            registry=self.registry,
        )
        self._since_claim = Gauge(
            "penstock_seconds_since_last_claim", "Since a job was last claimed here", registry=self.registry
        )
        self._stalls = Counter(
            "penstock_consumption_stalls", "Times that claims had stalled beside waiting jobs", registry=self.registry
        )
        self.claimed()

    def claimed(self) -> None:
        """A job was claimed just now."""
        at = time.monotonic()
        self._since_claim.set_function(lambda: time.monotonic() - at)

    def stalled(self) -> None:
        """Jobs wait, places are free, and nothing is being claimed."""
        self._stalls.inc()

    def watch_energy(self, device_uuid: str, meter: EnergyMeter) -> None:
        """Tell what a device draws, for as long as its meter can tell."""
        self.registry.register(_EnergyCollector(device_uuid, meter))

    def of(self, model_name: str, model_version: str, deployment_id: str) -> "EngineMetrics":
        """The metrics of one hosted model."""
        return EngineMetrics(self, (model_name, model_version, deployment_id))

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, _LABELS, registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, (*_LABELS, *labels), registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, _LABELS, buckets=buckets, registry=self.registry)


class _EnergyCollector(Collector):
    """Reads a meter when Prometheus asks."""

    def __init__(self, device_uuid: str, meter: EnergyMeter) -> None:
        self._device_uuid, self._meter = device_uuid, meter

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily("penstock_energy_joules", "What a GPU drew", labels=("device",))
        family.add_metric([self._device_uuid], self._meter.total_joules)
        yield family


class EngineMetrics:
    """What one hosted model tells. Called by its bridge's reader and by the threads that hold its jobs."""

    def __init__(self, worker: WorkerMetrics, labels: tuple[str, str, str]) -> None:
        self._worker, self._labels = worker, labels
        self._spans: Mapping[str, Histogram] = {
            name: histogram.labels(*labels) for name, histogram in worker._spans.items()
        }
        self._generated = worker._generated.labels(*labels)
        self._busy = worker._busy.labels(*labels)
        self._totals: dict[str, float] = {}

    def take(self, report: StepReport) -> None:
        """A step, and whatever else the engine told with it."""
        if report.shares:
            self._busy.inc(sum(share.seconds for share in report.shares))
            self._spans["vllm:iteration_tokens_total"].observe(sum(share.tokens for share in report.shares))
        if report.deltas:
            self._generated.inc(len(report.deltas))
        for measures in report.measures:
            self._take_measures(measures)
        if report.stats is not None:
            self._take_stats(report.stats)

    def note_prompt(self, tokens: int, cached: int) -> None:
        """A request got its first token: so much of its prompt is in the KV cache now."""
        self._worker._prompt.labels(*self._labels).inc(tokens)
        self._worker._cached.labels(*self._labels).inc(min(cached, tokens))

    def note_gap(self, seconds: float) -> None:
        """So long after a token came the same request's next."""
        self._spans["vllm:inter_token_latency_seconds"].observe(seconds)

    def note_dropped(self, seconds: float) -> None:
        """The device computed for a request that nobody holds any more."""
        self._used("dropped").inc(seconds)

    def run_ended(self, outcome: str, *, charged_seconds: float, device_seconds: float) -> None:
        """A run is over: what it took of the device is charged to its tenant, or was for nothing."""
        self._worker._runs.labels(*self._labels, outcome).inc()
        self._used("charged").inc(charged_seconds)
        self._used("recomputed").inc(max(device_seconds - charged_seconds, 0.0))

    def note_fenced(self, write: str) -> None:
        """The database or the journal refused a write, because the lease had been lost."""
        self._worker.fenced.labels(write).inc()

    def job_finished(self, job: Job) -> None:
        """The job is over, by the database's clock."""
        for name, at in (
            ("penstock_job_time_to_first_token_seconds", job.first_token_at),
            ("penstock_job_e2e_seconds", job.finished_at),
        ):
            if at is not None:
                self._spans[name].observe(max((at - job.created_at).total_seconds(), 0.0))

    def _used(self, use: str) -> Counter:
        return self._worker._use.labels(*self._labels, use)

    def _take_measures(self, measures: Measures) -> None:
        self._worker._success.labels(*self._labels, measures.ended).inc()
        inference = measures.prefill_seconds + measures.decode_seconds
        observed: dict[str, float] = {
            "vllm:request_queue_time_seconds": measures.queue_seconds,
            "vllm:request_inference_time_seconds": inference,
            "vllm:e2e_request_latency_seconds": measures.queue_seconds + inference,
            "vllm:request_prompt_tokens": measures.prompt_tokens,
            "vllm:request_generation_tokens": measures.generated_tokens,
        }
        if measures.generated_tokens:
            observed |= {
                "vllm:time_to_first_token_seconds": measures.queue_seconds + measures.prefill_seconds,
                "vllm:request_prefill_time_seconds": measures.prefill_seconds,
                "vllm:request_decode_time_seconds": measures.decode_seconds,
            }
        for name, value in observed.items():
            self._spans[name].observe(value)

    def _take_stats(self, stats: Mapping[str, float]) -> None:
        for name, (_, field) in _GAUGES.items():
            self._worker._gauges[name].labels(*self._labels).set(stats[field])
        self._worker._kv_usage.labels(*self._labels).set(stats["pages_in_use"] / stats["pages_total"])
        queries = stats["prefix_queries"]
        self._worker._hit_rate.labels(*self._labels).set(stats["prefix_hits"] / queries if queries else 0.0)
        for name, (_, field) in _COUNTERS.items():
            self._advance(self._worker._counters[name].labels(*self._labels).inc, field, stats[field])

    def _advance(self, add: Callable[[float], None], field: str, total: float) -> None:
        """Count on to an engine's total, which begins at 0 again with a new engine process."""
        before = self._totals.get(field, 0.0)
        add(total - before if total >= before else total)
        self._totals[field] = total
