"""`python -m bench.platform`, as far as the suite has time: real processes, tiny counts."""

import json
import signal
from pathlib import Path

import pytest
from penstock.embedded import EmbeddedServices

from bench import platform
from bench.platform_parts import report, submits
from bench.platform_parts.house import open_house
from bench.platform_parts.submits import Counts

COUNTS = Counts(submits=4, clients=2, first_events=1, jobs=6, slots=2)


@pytest.mark.usefixtures("database", "redis")
def test_jobs_go_through_web_worker_and_null_engine(
    services: EmbeddedServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submits, "WARM_UP", 1)
    with open_house(services) as house, house.front(), house.worker(*submits.worker(), worker_slots=COUNTS.slots):
        answers = submits.measure_answers(house, COUNTS)
        assert 0 < answers.first_event_ms.p50 <= answers.first_token_ms.p50
        taken = submits.measure_submits(house, COUNTS, COUNTS.clients)
        assert taken.per_second > 0
        assert {"postgres", "redis"} <= house.services.keys()
        assert house.usage().cpu.keys() == {"web", "control", "worker", "engine", *house.services}


def test_parts_that_are_not_measured_stay_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "platform.json"
    path.write_text(json.dumps({"submits": {"where": report.where(), "many": {"per_second": 321.0}}}))
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the test's own process keeps its handlers
    monkeypatch.setattr(platform.Bench, "claims", lambda _: {"many_over_few": 0.9})
    platform.main(["--json", str(path), "--only", "claims"])
    record = json.loads(path.read_text())
    assert record["figures"]["submits_per_second"] == 321.0
    assert record["figures"]["claims_at_100000_over_100"] == 0.9
    assert record["claims"]["where"]["commit"]
    assert record["tax"] is None
    assert "submits_per_second" in capsys.readouterr().out


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        platform.parse(["--only", "submits,nonsense"])
    assert "no part 'nonsense'" in capsys.readouterr().err
