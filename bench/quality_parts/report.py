"""What the figures are held to, and the record for reading."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from penstock_compress.figures import Estimate
from penstock_compress.pictures import Candidate, draw_candidates

from bench.engine_parts.targets import Target
from bench.engine_parts.where import measured_on
from bench.quality_parts.measuring import Measured, Row

ROOT: Final = Path(__file__).parent.parent.parent
_VERSIONS: Final = ("penstock", "torch", "transformers", "numpy")
POINTS: Final = 100

TARGETS: Final = (
    Target("invoices", "least", 4_000),
    Target("worst_bytes_off_arithmetic", "most", 0.05),
    Target("int8_points_lost", "most", 0.5),
    Target("fp8_points_lost", "most", 0.5),
    Target("int4_calibrated_points_lost", "most", 1.5),
    Target("int4_calibrated_kld_over_rtn", "most", 1.0),
    Target("int4_kld_removed_by_gptq", "least", 0.4),
    Target("int3_kld_recovered_by_qat", "least", 0.5),
    Target("int3_exact_match_recovered_by_qat", "least", 0.5),
)


def where() -> dict[str, object]:
    """Machine, versions and commit; call it before the measuring, for the load average."""
    return measured_on(_VERSIONS)


def figures(found: Measured) -> dict[str, float | None]:
    """What is looked at first; None where it was not measured. Points are of exact match, of a hundred."""
    by_name = {f"{row.scheme} {row.method}": row for row in found.rows}
    rtn4, rtn3 = by_name.get("int4 rtn"), by_name.get("int3 rtn")
    gptq, qat = by_name.get("int4 gptq"), by_name.get("int3 qat")
    calibrated = [row for name, row in by_name.items() if name in ("int4 gptq", "int4 awq")]
    best = min(calibrated, key=lambda row: row.kld_mean, default=None)
    exact = found.exact_match.value
    return {
        "invoices": found.invoices,
        "exact_match": exact,
        "worst_bytes_off_arithmetic": max((abs(row.bytes_over_arithmetic - 1) for row in found.rows), default=None),
        "int8_points_lost": _worst_lost(exact, found.rows, ("int8",)),
        "fp8_points_lost": _worst_lost(exact, found.rows, ("fp8", "fp8-tensor", "fp8-block")),
        "int4_calibrated_points_lost": None if best is None else POINTS * (exact - best.exact_match),
        "int4_calibrated_kld_over_rtn": None if best is None or rtn4 is None else best.kld_mean / rtn4.kld_mean,
        "int4_kld_removed_by_gptq": None if gptq is None or rtn4 is None else 1 - gptq.kld_mean / rtn4.kld_mean,
        "int3_kld_recovered_by_qat": None if qat is None or rtn3 is None else 1 - qat.kld_mean / rtn3.kld_mean,
        "int3_exact_match_recovered_by_qat": _recovered(exact, rtn3, qat),
    }


def _worst_lost(exact: float, rows: Sequence[Row], schemes: tuple[str, ...]) -> float | None:
    lost = [POINTS * (exact - row.exact_match) for row in rows if row.scheme in schemes]
    return max(lost, default=None)


def _recovered(exact: float, rounded: Row | None, trained: Row | None) -> float | None:
    """The share of the lost right answers that training brought back; None where nothing was lost."""
    if rounded is None or trained is None or exact <= rounded.exact_match:
        return None
    return (trained.exact_match - rounded.exact_match) / (exact - rounded.exact_match)


def verdicts(values: Mapping[str, float | None]) -> list[dict[str, object]]:
    """Each target beside what was measured."""
    return [{**asdict(each), "value": values.get(each.key), "met": each.met(values.get(each.key))} for each in TARGETS]


def heading() -> str:
    titles = ("bytes", "of", "KL", "p99", "same", "ppl", "exact", "flips", "tok/s", "ratio", "s")
    return f"{'':24}" + "".join(f"{title:>9}" for title in titles)


def line(row: Row) -> str:
    """A row of the table."""
    flips = row.right_to_wrong + row.wrong_to_right
    return (
        f"{row.scheme + ' ' + row.method:24}{row.bytes:9,}{row.bytes_ratio:9.1%}{row.kld_mean:9.4f}{row.kld_p99:9.3f}"
        f"{row.same_top:9.2%}{row.ppl_ratio:9.4f}{row.exact_match:9.2%}{flips:9}"
        f"{row.tokens_per_second:9,.0f}{row.speed_ratio:9.2f}{row.seconds:9.0f}"
    )


def lines(record: Mapping[str, Any]) -> Iterator[str]:
    """The figures and the targets for a terminal."""
    yield from (f"{key:36}{_figure(value)}" for key, value in record["figures"].items() if value is not None)
    yield ""
    yield f"{'target':36}{'measured':>12}{'bound':>12}"
    words = {True: "met", False: "MISSED", None: "not measured"}
    for each in record["targets"]:
        sign = "<=" if each["at"] == "most" else ">="
        yield f"{each['key']:36}{_figure(each['value'])}   {sign} {each['bound']:<9}{words[each['met']]}"


def draw(found: Measured) -> str:
    """KL and right answers against bytes."""
    candidates = [
        Candidate(
            f"{row.scheme} {row.method}",
            row.bytes,
            Estimate(row.kld_mean, None, row.kld_low, row.kld_high),
            Estimate(row.exact_match, None, row.exact_low, row.exact_high),
        )
        for row in found.rows
    ]
    whole = Candidate("bf16", found.bytes, Estimate(0, None, None, None), found.exact_match)
    notes = [
        f"{found.invoices:,} held-out invoices answered, {found.texts:,} of them scored whole "
        f"({found.positions:,} positions); bars hold the figure with 95%",
        "blue: no other is as small and better; green, dashed: the model in bf16, "
        f"{found.exact_match.value:.1%} right, {found.bytes:,} bytes",
    ]
    return draw_candidates(candidates, whole, "Smaller versions of the invoice model", notes)


def _figure(value: float | None) -> str:
    return f"{'-':>12}" if value is None else f"{value:>12.6g}"
