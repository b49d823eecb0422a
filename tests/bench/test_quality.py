"""The quality bench: what its figures say, and one small run of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from penstock_compress import Recipe, answering, compress
from penstock_compress.figures import share_of

from bench.quality_parts.arithmetic import expected_bytes
from bench.quality_parts.contestants import CONTESTANTS, Contestant, calibration, mixed, of
from bench.quality_parts.measuring import Measured, Row, measure
from bench.quality_parts.report import TARGETS, draw, figures, line, lines, verdicts
from examples.invoices.evaluate import MODEL_FOLDER

MIXED = replace(mixed("40%").recipe, samples=2, length=32)
ROW = Row(
    scheme="int4",
    method="rtn",
    bytes=627_160,
    bytes_ratio=0.353,
    bytes_over_arithmetic=1.017,
    held_bytes=859_136,
    kld_mean=0.04,
    kld_low=0.03,
    kld_high=0.05,
    kld_p99=0.7,
    same_top=0.98,
    answer_kld_mean=0.001,
    ppl_ratio=1.001,
    exact_match=0.95,
    exact_low=0.94,
    exact_high=0.96,
    right_to_wrong=20,
    wrong_to_right=4,
    tokens_per_second=9_000.0,
    speed_ratio=1.1,
    seconds=30.0,
)


def row(name: str, **others: Any) -> Row:
    scheme, _, method = name.partition(" ")
    return replace(ROW, scheme=scheme, method=method, **others)


def found(*rows: Row) -> Measured:
    exact = share_of(3840, 4000)  # 96%
    return Measured(4000, 512, 90_000, exact, 1_775_824, 1_989_632, share_of(1, 2), {}, list(rows))


def test_figures_are_of_the_rows_that_they_name() -> None:
    values = figures(
        found(
            row("int8 rtn", exact_match=0.959),
            row("int8 smoothquant", exact_match=0.957),
            row("fp8 rtn", exact_match=0.96),
            row("fp8-block rtn", exact_match=0.952, bytes_over_arithmetic=0.93),
            row("int4 rtn"),
            row("int4 awq", kld_mean=0.03, exact_match=0.95),
            row("int4 gptq", kld_mean=0.01, exact_match=0.955),
            row("int3 rtn", kld_mean=0.2, exact_match=0.86),
            row("int3 qat", kld_mean=0.05, exact_match=0.94),
        )
    )
    assert {key: None if value is None else round(value, 6) for key, value in values.items()} == {
        "invoices": 4000,
        "exact_match": 0.96,
        "worst_bytes_off_arithmetic": 0.07,
        "int8_points_lost": 0.3,
        "fp8_points_lost": 0.8,
        "int4_calibrated_points_lost": 0.5,
        "int4_calibrated_kld_over_rtn": 0.25,
        "int4_kld_removed_by_gptq": 0.75,
        "int3_kld_recovered_by_qat": 0.75,
        "int3_exact_match_recovered_by_qat": 0.8,
    }
    met = {each["key"]: each["met"] for each in verdicts(values)}
    assert [key for key, value in met.items() if not value] == ["worst_bytes_off_arithmetic", "fp8_points_lost"]


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    values = figures(found(row("int4 rtn")))
    assert {each["key"] for each in verdicts(values) if each["met"] is not None} == {
        "invoices",
        "worst_bytes_off_arithmetic",
    }
    told = "\n".join(lines({"figures": values, "targets": verdicts(values)}))
    assert told.count("not measured") == len(TARGETS) - 2


def test_every_target_is_of_a_figure() -> None:
    assert {each.key for each in TARGETS} <= figures(found(ROW)).keys()


def test_contestants_have_names_of_their_own_and_cover_the_targets() -> None:
    names = [each.name for each in CONTESTANTS]
    assert len(set(names)) == len(names)
    assert {"int8 rtn", "fp8 rtn", "int4 rtn", "int4 gptq", "int4 awq", "int3 rtn", "int3 qat"} <= set(names)


@pytest.mark.parametrize(
    ("recipe", "off"),
    [(Recipe("int8"), 0.02), (Recipe("int4-asym", group=64), 0.03), (Recipe("fp8-block"), 0.02), (MIXED, 0.03)],
    ids=lambda each: each.scheme if isinstance(each, Recipe) else "",
)
def test_arithmetic_is_what_files_take(tmp_path: Path, recipe: Recipe, off: float) -> None:
    outcome = compress(MODEL_FOLDER, tmp_path / "out", recipe, calibration()[:2, :32] if recipe.calibrated else None)
    expected = expected_bytes(MODEL_FOLDER, outcome.folder)
    assert expected == pytest.approx(outcome.bytes, rel=off)
    assert expected < outcome.bytes  # files have headers


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """Two contestants."""
    folder = tmp_path_factory.mktemp("quality")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(answering, "AT_ONCE", 2)  # speed is not what this is about
        *rows, measured = measure([of("int8"), of("int3")], invoices=6, texts=3, folder=folder)
    assert isinstance(measured, Measured)
    assert rows == measured.rows
    return measured


def test_a_small_run_measures_each_contestant(small_run: Measured) -> None:
    eight, three = small_run.rows
    assert (small_run.invoices, small_run.texts) == (6, 3)
    assert (eight.scheme, three.scheme) == ("int8", "int3")
    assert eight.kld_mean < three.kld_mean / 10
    assert eight.bytes_over_arithmetic == pytest.approx(1, abs=0.05)
    assert three.bytes < 0.6 * eight.bytes
    assert eight.exact_match >= three.exact_match
    assert small_run.exact_match.value >= 5 / 6
    assert small_run.noise["whole"]["divergence"]["mean"]["value"] < 1e-4
    for each in small_run.rows:
        assert each.tokens_per_second > 0
        assert each.bytes < each.held_bytes < 1.5 * each.bytes  # a tied head is held twice


def test_rows_and_pictures_name_their_contestants(small_run: Measured) -> None:
    drawn = draw(small_run)
    for each in small_run.rows:
        assert line(each).startswith(f"{each.scheme} {each.method} ")
        assert f">{each.scheme} {each.method}<" in drawn


def test_a_contestant_that_is_trained_has_its_own_recipe() -> None:
    trained = [each for each in CONTESTANTS if each.train]
    assert [each.name for each in trained] == ["int3 qat"]
    assert all(isinstance(each, Contestant) for each in CONTESTANTS)
