"""The bench of the gates, with few runs: what it writes is whole, and a missed target is said to be missed."""

import json
from pathlib import Path

import pytest
from penstock.rollouts.policy import Policy

from bench import gates
from tests.conftest import ROOT


def test_the_bench_measures_everything_that_the_record_holds() -> None:
    measured, met = gates.measure(8)
    record = json.loads((ROOT / "bench/results/gates.json").read_text())
    for name, found in measured.items():
        if isinstance(found, dict):
            assert set(found) == set(record[name]), name
    json.dumps(measured, allow_nan=False)
    assert record["targets"]["met"] is True
    assert record["default_policy"]["version"] == Policy().version, "the record is of the policy of today"
    assert isinstance(met, bool)


@pytest.mark.parametrize(("met", "status"), [(True, 0), (False, 1)])
def test_a_missed_target_ends_it_with_a_status(
    met: bool, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gates, "measure", lambda _: ({"alpha": 0.01}, met))
    monkeypatch.setattr("sys.argv", ["gates", "--part", "simulation", "--json", str(tmp_path / "gates.json")])
    with pytest.raises(SystemExit) as ended:
        gates.main()
    assert ended.value.code == status
    assert json.loads((tmp_path / "gates.json").read_text())["alpha"] == 0.01


def test_rates_beyond_their_target_are_not_met() -> None:
    assert gates.Rate(100, 0.009, 0.02, 0.01).met
    assert not gates.Rate(100, 0.011, 0.02, 0.01).met
    assert gates.Rate(100, 0.2, 0.3, None).met
