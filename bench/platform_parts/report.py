"""What the figures are held to, where they were measured, and the record for reading."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, Final

from bench.engine_parts.targets import Target
from bench.engine_parts.where import measured_on

_VERSIONS: Final = (
    "penstock", "flask", "gunicorn", "celery", "redis", "sqlalchemy", "psycopg", "torch", "transformers",
)  # fmt: skip

# Where in the record each figure stands, by its parts' keys.
_PLACES: Final = {
    "submits_per_second": ("submits", "many", "per_second"),
    "first_event_p50_ms": ("submits", "answers", "first_event_ms", "p50"),
    "first_event_p99_ms": ("submits", "answers", "first_event_ms", "p99"),
    "first_token_p50_ms": ("submits", "answers", "first_token_ms", "p50"),
    "first_token_p99_ms": ("submits", "answers", "first_token_ms", "p99"),
    "jobs_per_second": ("jobs", "end_to_end_per_second"),
    "jobs_served_per_second": ("jobs", "served_per_second"),
    "readers": ("streams", "readers"),
    "worker_cpu_over_without_readers": ("streams", "worker_cpu_over_without_readers"),
    "claims_at_100000_over_100": ("claims", "many_over_few"),
    "rest_over_engine_demo": ("tax", "demo", "rest_over_engine"),
    "rest_over_engine_0.5b": ("tax", "shape", "rest_over_engine"),
    "jobs_over_plain_1_client": ("peers", "1 clients", "jobs_over_plain"),
    "jobs_over_plain_16_clients": ("peers", "16 clients", "jobs_over_plain"),
    "p50_over_plain_1_client": ("peers", "1 clients", "p50_over_plain"),
    "p50_over_plain_16_clients": ("peers", "16 clients", "p50_over_plain"),
    "batch_lines": ("lines", "lines", "succeeded"),
    "batch_web_mebibytes": ("lines", "web_mebibytes"),
    "batch_control_mebibytes": ("lines", "control_mebibytes"),
}

TARGETS: Final = (
    Target("submits_per_second", "least", 200),
    Target("jobs_per_second", "least", 100),
    Target("readers", "least", 1000),
    Target("worker_cpu_over_without_readers", "most", 1.1),
    Target("claims_at_100000_over_100", "least", 0.8),
    Target("rest_over_engine_0.5b", "least", 0.85),
    Target("rest_over_engine_demo", "least", 0.85),
    Target("jobs_over_plain_1_client", "least", 1.0),
    Target("jobs_over_plain_16_clients", "least", 1.0),
    Target("batch_lines", "least", 50_000),
    Target("batch_web_mebibytes", "most", 200),
    Target("batch_control_mebibytes", "most", 200),
)


def where() -> dict[str, object]:
    """Machine, versions and commit; call it before the measuring, for the load average."""
    return measured_on(_VERSIONS)


def figures(parts: Mapping[str, Any]) -> dict[str, float | None]:
    """What is looked at first; None where it was not measured."""
    return {key: _at(parts, place) for key, place in _PLACES.items()}


def verdicts(values: Mapping[str, float | None]) -> list[dict[str, object]]:
    """Each target beside what was measured."""
    return [{**asdict(each), "value": values.get(each.key), "met": each.met(values.get(each.key))} for each in TARGETS]


def lines(record: Mapping[str, Any]) -> Iterator[str]:
    """The figures and the targets for a terminal."""
    for part, found in record.items():
        if isinstance(found, Mapping) and "where" in found:
            where = found["where"]
            machine = f"{where['cpu']}, {where['cores']} cores"
            yield f"{part:10}{where['measured_at']}  {machine}; commit {where['commit'][:12]}"
    yield ""
    yield from (f"{key:34}{_figure(value)}" for key, value in record["figures"].items() if value is not None)
    yield ""
    yield f"{'target':34}{'measured':>12}{'bound':>12}"
    words = {True: "met", False: "MISSED", None: "not measured"}
    for each in record["targets"]:
        sign = "<=" if each["at"] == "most" else ">="
        yield f"{each['key']:34}{_figure(each['value'])}   {sign} {each['bound']:<9}{words[each['met']]}"


def _at(parts: Any, place: tuple[str, ...]) -> Any:
    for key in place:
        if not isinstance(parts, Mapping) or key not in parts:
            return None
        parts = parts[key]
    return parts


def _figure(value: float | None) -> str:
    return f"{'-':>12}" if value is None else f"{value:>12.6g}"
